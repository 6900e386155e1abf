"""Storage nodes that get a fraction of a core hand their work back, and the answers stay right."""

import concurrent.futures
import contextlib
import os
import signal
import threading
import time

import adbc_driver_flightsql.dbapi
import pytest

from cluster import NO_CACHES, Cluster

# Most of the time of a period the process is stopped, which leaves it about an eighth of a core.
PERIOD_SECONDS = 0.04
RUNNING_SECONDS = 0.005
AT_A_TIME = 6
SQL = "select v % 7, count(*), sum(v * 3 - k), min(length(s)) from big where v % 13 <> 5 group by 1 order by 1"


class ImpatientCluster(Cluster):
    """Nodes with one thread for scans that hand back what would wait for it for 10 ms."""

    def start_node(self, index, *options):
        budget = ("--cpu-threads", "1", "--pushback-after", "10", "--fragment-cache", "0")
        return super().start_node(index, *budget, *options)


@contextlib.contextmanager
def throttled(servers):
    """Holds processes to a fraction of a core."""
    stop = threading.Event()

    def hold():
        try:
            while not stop.is_set():
                for server in servers:
                    os.kill(server.process.pid, signal.SIGSTOP)
                stop.wait(PERIOD_SECONDS - RUNNING_SECONDS)
                for server in servers:
                    os.kill(server.process.pid, signal.SIGCONT)
                stop.wait(RUNNING_SECONDS)
        finally:
            for server in servers:
                os.kill(server.process.pid, signal.SIGCONT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = ImpatientCluster(tmp_path_factory.mktemp("throttled"), nodes=3, copies=3, serve_arguments=NO_CACHES)
    yield cluster
    assert cluster.stop() == [0] * 4


def ask(cluster, sql):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def pushbacks(cluster):
    ((count,),) = ask(cluster, "select value from system.metrics where name = 'scan_pushbacks'")
    return count


def test_nodes_with_a_fraction_of_a_core_hand_work_back(cluster):
    columns = "value as v, value % 1000 as k, repeat('x', value % 20) as s"
    ask(cluster, f"create table big as select {columns} from generate_series(1, 1000000)")
    expected = ask(cluster, SQL)
    before = pushbacks(cluster)
    deadline = time.monotonic() + 120
    with throttled(cluster.nodes), concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        while pushbacks(cluster) == before:
            assert time.monotonic() < deadline, "no node has handed anything back"
            for answer in pool.map(lambda _: ask(cluster, SQL), range(AT_A_TIME)):
                assert answer == expected
    assert ask(cluster, SQL) == expected

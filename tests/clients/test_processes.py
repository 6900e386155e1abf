"""Bad days of real processes: killed, restarted, started twice, started wrongly."""

import socket
import threading

import adbc_driver_flightsql.dbapi
import pytest

from cluster import NO_CACHES, Cluster

ROWS = 600_000
SQL = "select count(*), sum(id), sum(length(s)) from big"
ANSWER = (ROWS, ROWS * (ROWS + 1) // 2, ROWS * 50)


def ask(cluster, sql, parameters=None):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall()


@pytest.fixture
def fresh(tmp_path):
    """A cluster that the test may break."""
    cluster = Cluster(tmp_path, serve_arguments=NO_CACHES)
    yield cluster
    logs = cluster.logs()
    cluster.stop()
    assert "panicked" not in logs


@pytest.fixture
def loaded(fresh):
    ask(fresh, f"create table big as select value as id, repeat('y', 50) as s from generate_series(1, {ROWS})")
    return fresh


def test_answers_are_exact_while_nodes_are_killed(loaded):
    killer = threading.Timer(0.05, lambda: [node.kill() for node in loaded.nodes[:2]])
    killer.start()
    for _ in range(10):
        assert ask(loaded, SQL) == [ANSWER]
    killer.join()


def test_a_killed_node_comes_back_with_its_data(loaded):
    loaded.nodes[0].kill()
    assert ask(loaded, SQL) == [ANSWER]
    loaded.restart_node(0)
    for node in loaded.nodes[1:]:
        node.kill()
    assert ask(loaded, SQL) == [ANSWER]


def test_without_any_replica_the_query_names_a_segment(loaded):
    for node in loaded.nodes:
        node.kill()
    with pytest.raises(Exception, match="SEGMENT_UNAVAILABLE"):
        ask(loaded, SQL)


def test_too_few_nodes_refuse_a_write_and_show_nothing(loaded):
    for node in loaded.nodes[:3]:
        node.kill()
    with pytest.raises(Exception, match="QUORUM_UNAVAILABLE"):
        ask(loaded, "insert into big values (0, 'z')")
    assert ask(loaded, SQL) == [ANSWER]


def test_a_write_needs_only_its_quorum(loaded):
    for node in loaded.nodes[:2]:
        node.kill()
    ask(loaded, "insert into big values (-1, 'z')")
    assert ask(loaded, "select count(*) from big") == [(ROWS + 1,)]


def test_a_killed_coordinator_comes_back_with_all_that_was_committed(loaded):
    loaded.coordinator.kill()
    loaded.start_coordinator()
    assert ask(loaded, SQL) == [ANSWER]
    ask(loaded, "insert into big values (-1, 'z')")
    assert ask(loaded, "select count(*) from big") == [(ROWS + 1,)]


def test_a_flipped_byte_is_answered_from_another_replica(loaded):
    file = max(
        (path for path in (loaded.folder / "node1").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    for node_folder in ("node1", "node2", "node3"):
        copy = loaded.folder / node_folder / file.relative_to(loaded.folder / "node1")
        data = bytearray(copy.read_bytes())
        data[len(data) // 2] ^= 1
        copy.write_bytes(data)
    for _ in range(6):
        assert ask(loaded, SQL) == [ANSWER]


def test_status_tells_what_there_is(loaded):
    text = loaded.run("cluster", "status", "--cluster", loaded.url).stdout
    assert "big" in text and "az3" in text


def test_a_data_folder_in_use_is_refused(fresh):
    arguments = ["--cluster", fresh.url, "--data", str(fresh.folder / "node1"), "--zone", "az1"]
    done = fresh.run("storage-node", *arguments, "--listen", "127.0.0.1:0", check=False, timeout=60)
    assert done.returncode != 0
    assert "IN_USE" in done.stderr and "node1" in done.stderr


def test_a_data_folder_of_another_cluster_is_refused(fresh, tmp_path):
    fresh.nodes.pop(0).stop()
    other = f"file://{tmp_path / 'other'}"
    fresh.run("cluster", "init", "--cluster", other)
    arguments = ["--cluster", other, "--data", str(fresh.folder / "node1"), "--zone", "az1"]
    done = fresh.run("storage-node", *arguments, "--listen", "127.0.0.1:0", check=False, timeout=60)
    assert done.returncode != 0
    assert "WRONG_CLUSTER" in done.stderr


def test_a_taken_port_is_refused_by_name(fresh):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = fresh.run("serve", "--cluster", fresh.url, "--listen", address, check=False, timeout=60)
    assert done.returncode != 0
    assert "IN_USE" in done.stderr and address in done.stderr


def test_an_unsafe_quorum_is_refused(fresh, tmp_path):
    url = f"file://{tmp_path / 'unsafe'}"
    quorum = ["--copies", "6", "--write-quorum", "3", "--read-quorum", "4"]
    done = fresh.run("cluster", "init", "--cluster", url, *quorum, check=False)
    assert done.returncode != 0
    assert "QUORUM_UNSAFE" in done.stderr


def test_a_cluster_is_made_only_once(fresh):
    done = fresh.run("cluster", "init", "--cluster", fresh.url, check=False)
    assert done.returncode != 0
    assert "CLUSTER_EXISTS" in done.stderr


def test_a_truncated_file_is_not_loaded(fresh, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "broken.parquet"
    pyarrow.parquet.write_table(pa.table({"id": list(range(100_000))}), path)
    path.write_bytes(path.read_bytes()[:-1000])
    done = fresh.run("load", "broken", str(path), "--url", fresh.uri, check=False)
    assert done.returncode != 0
    assert "FILE_UNREADABLE" in done.stderr and "broken.parquet" in done.stderr
    assert ask(fresh, "select * from information_schema.tables where table_name = 'broken'") == []


def test_files_are_loaded_with_one_commit(fresh, tmp_path):
    (tmp_path / "a.csv").write_text("id,s\n1,x\n2,y\n")
    (tmp_path / "b.csv").write_text("id,s\n3,z\n")
    fresh.run("load", "things", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--url", fresh.uri)
    assert ask(fresh, "select count(*), sum(id), max(s) from things") == [(3, 6, "z")]


@pytest.mark.parametrize("format", ["table", "csv", "json", "ndjson"])
def test_the_shell_prints_every_format(fresh, format):
    done = fresh.run("sql", "--url", fresh.uri, "--format", format, "-c", "select 42 as answer, 'a,b' as s")
    assert "42" in done.stdout and "answer" in done.stdout


def test_the_shell_makes_and_fills_a_table(fresh):
    for sql in ("create table t (a bigint)", "insert into t values (1), (2)", "create view v as select 2 as a"):
        fresh.run("sql", "--url", fresh.uri, "-c", sql)
    done = fresh.run("sql", "--url", fresh.uri, "--format", "csv", "-c", "select sum(a) from t; select a from v; drop table t")
    assert "3" in done.stdout and "2" in done.stdout

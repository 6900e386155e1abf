"""How long a short query takes while long ones run beside it.

The storage nodes have one CPU thread each, so that a short query which came last would have to wait for all
that the long ones have queued. Its times beside them are compared with its times alone.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import statistics
import threading
import time

from common import Adbc, QuietCluster, heading, main, parser
from cluster import run as run_binary
from frame import fill, percentile_95

SHORT = "SELECT x FROM small WHERE id = 500"
# No statistics can answer it, and every row of the table is decoded for it.
LONG = "SELECT l_returnflag, sum(l_extendedprice * (1 - l_discount)), count(DISTINCT l_suppkey) FROM lineitem GROUP BY 1"


def arguments():
    options = parser(__doc__, runs=200)
    options.add_argument("--scale", default="0.5", help="scale of the TPC-H tables of the long queries")
    options.add_argument("--long", type=int, default=4, help="long queries that run at a time")
    options.add_argument("--nodes", type=int, default=3, help="storage nodes")
    return options


class OneThreadCluster(QuietCluster):
    """A quiet cluster whose nodes have one thread for scans."""

    def start_node(self, index, *options):
        return super().start_node(index, "--cpu-threads", "1", *options)


def run_long(cluster, stop):
    """Runs the long query until it is told to stop; its times."""
    seconds = []
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        while not stop.is_set():
            started = time.perf_counter()
            session.run(LONG)
            seconds.append(time.perf_counter() - started)
    return seconds


def measure(cluster, runs):
    """Seconds of the short query."""
    seconds = []
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        for _ in range(20):
            session.run(SHORT)
        for _ in range(runs):
            started = time.perf_counter()
            session.run(SHORT)
            seconds.append(time.perf_counter() - started)
    return seconds


def run(options, folder, stack):
    cluster = OneThreadCluster(folder, options.nodes, min(options.nodes, 3))
    stack.callback(cluster.stop)
    fill(cluster, "small", 1000, segments=1)
    run_binary("tpch", "load", "--scale", options.scale, "--url", cluster.uri)
    alone = measure(cluster, options.runs)
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(options.long) as pool:
        running = [pool.submit(run_long, cluster, stop) for _ in range(options.long)]
        try:
            # Not one of them has ended, or they would not have run beside the short ones.
            beside = measure(cluster, options.runs)
            failed = [future for future in running if future.done()]
        finally:
            stop.set()
        for future in failed:
            future.result()
        seconds = [value for future in running for value in future.result()]
    return {"scale": options.scale, "long": options.long, "alone": alone, "beside": beside, "long_seconds": seconds}


def report(result):
    """Prints the times of the short query, alone and beside the long ones."""
    print(heading(result, "fairness"))
    print(f"{result['long']} long queries at a time over TPC-H scale {result['scale']}, median {statistics.median(result['long_seconds']):.2f} s each")
    print()
    print(f"{'short query':<24} {'median ms':>10} {'p95 ms':>8}")
    for name in ("alone", "beside"):
        label = name if name == "alone" else "beside the long ones"
        print(f"{label:<24} {1000 * statistics.median(result[name]):>10.2f} {1000 * percentile_95(result[name]):>8.2f}")


if __name__ == "__main__":
    main(arguments(), run, report)

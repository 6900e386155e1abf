"""What the coordinator has resident beside what it was told to take.

The tables are larger than the buffer pool, which is filled with columns of the largest one until it refuses
more; then the 22 queries run, several at a time. What is resident at most is compared with the sum of both
budgets.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import random

from common import Adbc, main, metric, parser, tpch_query
from cluster import Cluster
from peers import MIB, load, numbers

TARGET = 1.1


def arguments():
    options = parser(__doc__, runs=3)
    options.add_argument("--scale", type=float, default=10.0, help="TPC-H scale factor")
    options.add_argument("--queries", default="1-22", help="for example 1,6 or 1-22")
    options.add_argument("--clients", type=int, default=3, help="queries that run at a time")
    options.add_argument("--memory-limit", default="2GiB", help="of queries")
    options.add_argument("--buffer-pool", default="4GiB", help="of decoded columns")
    options.add_argument("--nodes", type=int, default=3, help="storage nodes")
    options.add_argument("--copies", type=int, default=1, help="replicas of every segment")
    return options


def ask(cluster, queries):
    """Asks queries one after the other."""
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        for sql in queries:
            session.run(sql)


def fill(cluster):
    """Caches columns of the largest table until one finds no room."""
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'lineitem' ORDER BY ordinal_position"
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        cached = []
        for column in session.run(columns).column("column_name").to_pylist():
            try:
                session.run(f"CACHE TABLE lineitem ({', '.join([*cached, column])})")
            except Exception as error:
                assert "LIMIT_EXCEEDED" in str(error), error
                return
            cached.append(column)


def run(options, folder, stack):
    budgets = ("--memory-limit", options.memory_limit, "--buffer-pool", options.buffer_pool)
    cluster = Cluster(folder, options.nodes, options.copies, serve_arguments=budgets)
    stack.callback(cluster.stop)
    load(cluster, options.scale)
    fill(cluster)
    queries = [tpch_query(number) for number in numbers(options.queries)]
    generator = random.Random(1)
    with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
        for _ in range(options.runs):
            orders = [generator.sample(queries, len(queries)) for _ in range(options.clients)]
            for done in [pool.submit(ask, cluster, order) for order in orders]:
                done.result()
    session = Adbc(cluster, stack)
    budget = metric(session, "memory_limit_bytes") + metric(session, "buffer_pool_limit_bytes")
    return {
        "scale": options.scale,
        "clients": options.clients,
        "budgets": budgets,
        "budget_bytes": budget,
        "pool_bytes": metric(session, "buffer_pool_bytes"),
        "peak_bytes": cluster.coordinator.peak_memory_bytes(),
        "node_peak_bytes": [node.peak_memory_bytes() for node in cluster.nodes],
    }


def report(result):
    """Prints what was resident at most."""
    rounds, version = result["runs"], result["versions"]["aubade"]
    print(f"memory, TPC-H scale {result['scale']:g}, {rounds} rounds, {result['cpus']} CPUs; aubade {version}")
    print(f"{result['clients']} queries at a time; serve {' '.join(result['budgets'])}")
    share = result["peak_bytes"] / result["budget_bytes"]
    verdict = "reached" if share <= TARGET else "missed"
    print()
    print(f"coordinator: {result['peak_bytes'] / MIB:.0f} MiB resident at most, {share:.2f}x of both budgets   target {TARGET:g}x: {verdict}")
    print(f"buffer pool: {result['pool_bytes'] / MIB:.0f} MiB in the end")
    print(f"storage nodes: {', '.join(f'{peak / MIB:.0f}' for peak in result['node_peak_bytes'])} MiB at most")


if __name__ == "__main__":
    main(arguments(), run, report)

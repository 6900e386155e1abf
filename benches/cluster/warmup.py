"""What a query pays for the loads into the buffer pool that it causes.

Two coordinators over the same storage nodes are asked the same queries in turn: one has no buffer pool, and one
has an empty pool each time, so that each query is answered by storage nodes and has the columns loaded that it has
missed. Neither keeps results of fragments. The loads of a query end before anything else is timed: what is measured
is the query that caused them. Each timed run follows one of the same coordinator that uses no pool and is not timed,
so that the two find everything alike, and the ratio of a query is the median of those of its runs.
"""

from __future__ import annotations

import math
import operator
import statistics

from common import Coordinator, Flight, QuietCluster, heading, interleave, main, parser, require, tpch_query
from peers import MIB, load, numbers

TARGET = 1.05


def arguments():
    options = parser(__doc__, runs=21)
    options.add_argument("--scale", type=float, default=1, help="scale factor of TPC-H")
    options.add_argument("--queries", default="1,3,6,14", help="for example 1,6 or 1-22")
    options.add_argument("--buffer-pool", default="4GiB", help="of decoded columns: has room for all that the queries read")
    options.add_argument("--nodes", type=int, default=3, help="storage nodes")
    options.add_argument("--copies", type=int, default=3, help="replicas of every segment")
    return options


def pool_bytes(session):
    """What the buffer pool holds now."""
    sql = "SELECT value FROM system.metrics WHERE name = 'buffer_pool_bytes'"
    return session.run(sql).column("value")[0].as_py()


def run(options, folder, stack):
    cluster = QuietCluster(folder, options.nodes, options.copies)
    stack.callback(cluster.stop)
    load(cluster, options.scale)
    pools = {"off": "0", "empty": options.buffer_pool}
    coordinators = {
        name: Coordinator(cluster, f"serve-{name}", stack, "--fragment-cache", "0", "--buffer-pool", size)
        for name, size in pools.items()
    }
    sessions = {name: Flight(coordinator, stack) for name, coordinator in coordinators.items()}
    before_timed = {name: Flight(coordinator, stack) for name, coordinator in coordinators.items()}
    before_timed["empty"].run("SET aubade.buffer_pool = off")
    loaded = {}

    def measure(number, sql):
        def before(name):
            # The loads of the run before have to end first.
            coordinators["empty"].settle()
            loaded[number] = max(loaded.get(number, 0), pool_bytes(sessions["empty"]))
            sessions["empty"].run("DISCARD BUFFERS")
            before_timed[name].run(sql)

        cases = {name: lambda session=session: session.run(sql) for name, session in sessions.items()}
        coordinators["empty"].settle()
        sessions["empty"].run("DISCARD BUFFERS")
        # Plans and footers are kept from then on.
        interleave(cases, 1)
        seconds = interleave(cases, options.runs, before)
        require(loaded[number], f"q{number} has caused no loads: nothing was measured")
        return seconds

    seconds = {number: measure(number, tpch_query(number)) for number in numbers(options.queries)}
    return {
        "scale": options.scale,
        "nodes": options.nodes,
        "copies": options.copies,
        "seconds": seconds,
        "loaded_bytes": loaded,
    }


def report(result):
    """Prints the times of each query without a pool and with an empty one, and the ratio of the two."""
    print(heading(result, f"queries that fill the buffer pool, TPC-H scale {result['scale']:g}"))
    print(f"{result['nodes']} storage nodes, {result['copies']} copies, processes on loopback, no results of fragments kept")
    print()
    print("query  no pool ms  empty pool ms  ratio  loaded afterwards MiB")
    ratios = []
    for number, seconds in result["seconds"].items():
        off, empty = (1000 * statistics.median(seconds[name]) for name in ("off", "empty"))
        ratios.append(statistics.median(map(operator.truediv, seconds["empty"], seconds["off"])))
        verdict = "reached" if ratios[-1] <= TARGET else "missed"
        print(
            f"{'q' + str(number):<5} {off:>11.1f} {empty:>14.1f} {ratios[-1]:>6.3f}"
            f" {result['loaded_bytes'][number] / MIB:>22.1f}   target {TARGET:g}: {verdict}"
        )
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"geometric mean of the ratios: {mean:.3f}")


if __name__ == "__main__":
    main(arguments(), run, report)

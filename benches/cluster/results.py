"""What a dashboard costs whose queries come again: with the results of fragments that the first run left.

Each query runs once, which is "first", and then many times, one query after the other. Then rows are appended to
lineitem, and the next run asks for these only.
"""

from __future__ import annotations

import statistics

from common import Adbc, Flight, heading, interleave, main, parser, tpch_query
from cluster import Cluster
from frame import percentile_95
from peers import load

QUERIES = (1, 6, 14, 15)
TARGET_MS = 5.0
APPEND = "INSERT INTO lineitem SELECT * FROM lineitem WHERE l_orderkey < 2000"


def arguments():
    options = parser(__doc__, runs=100)
    options.add_argument("--scale", type=float, default=1, help="scale factor of TPC-H")
    options.add_argument("--nodes", type=int, default=6, help="storage nodes")
    options.add_argument("--copies", type=int, default=6, help="replicas of every segment")
    return options


def run(options, folder, stack):
    # No columns are kept, so that nothing but results of fragments is.
    cluster = Cluster(folder, options.nodes, options.copies, serve_arguments=("--buffer-pool", "0"))
    stack.callback(cluster.stop)
    load(cluster, options.scale)
    flight = Flight(cluster, stack)
    texts = {number: tpch_query(number) for number in QUERIES}
    # A session for each, as where every panel of a dashboard has its statement.
    sessions = {number: Adbc(cluster, stack) for number in QUERIES}
    cases = {number: lambda number=number, sql=sql: sessions[number].run(sql) for number, sql in texts.items()}
    first = {number: seconds for number, (seconds,) in interleave(cases, 1).items()}
    again = interleave(cases, options.runs)
    records = {number: flight.record(sql) for number, sql in texts.items()}
    sessions[QUERIES[0]].run(APPEND)
    return {
        "nodes": options.nodes,
        "copies": options.copies,
        "scale": options.scale,
        "first_seconds": first,
        "again_seconds": again,
        "again_records": records,
        "appended_records": {number: flight.record(sql) for number, sql in texts.items()},
    }


def report(result):
    """Prints the times of each query, and what of the cluster was asked."""
    print(heading(result, f"queries that come again, TPC-H scale {result['scale']:g}"))
    print(f"{result['nodes']} storage nodes, {result['copies']} copies, processes on loopback, ADBC client, no buffer pool")
    print()
    print("query    first ms  again ms   p95 ms  requests  kept   after an append: requests  kept    rows read")
    for number, first in result["first_seconds"].items():
        seconds, again = result["again_seconds"][number], result["again_records"][number]
        median, p95 = 1000 * statistics.median(seconds), 1000 * percentile_95(seconds)
        verdict = "reached" if median < TARGET_MS else "missed"
        after = result["appended_records"][number]
        print(
            f"{'q' + str(number):<6} {1000 * first:>10.1f} {median:>9.2f} {p95:>8.2f} {again['requests']:>9}"
            f" {again['segments_kept']:>5} {after['requests']:>26} {after['segments_kept']:>5} {after['rows_in']:>12}"
            f"   target {TARGET_MS:g} ms: {verdict}"
        )


if __name__ == "__main__":
    main(arguments(), run, report)

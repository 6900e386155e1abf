"""What a query costs before it reads anything much: planning, calls between processes, and each segment's share.

A query for one row of a small table of one segment shows the cost of a query, and the same rows in 1 and in
many segments show the cost of a segment.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics

from common import Adbc, Flight, QuietCluster, heading, interleave, main, parser

ROW_TARGET_MS = 2.0
SEGMENT_TARGET_MICROS = 20.0
# Rows of a segment in the table of many: so few that what a segment costs is not what its rows cost.
SEGMENT_ROWS = 100
# Of the table that is asked for one row: so few that reading them takes no time.
SMALL_ROWS = 1000
ROW = "SELECT x FROM small WHERE id = {}"
# The same calls, of which none reaches a storage node.
NOTHING = "SELECT {}"
# No statistics can tell how many rows pass, so every segment is asked.
COUNT = "SELECT count(*) FROM {} WHERE x % 7 = 3"


def arguments():
    options = parser(__doc__, runs=500)
    options.add_argument("--count-runs", type=int, default=50, help="timed repetitions of the query over many segments")
    options.add_argument("--segments", type=int, default=1000, help="segments of the large table")
    options.add_argument("--nodes", type=int, default=6, help="storage nodes")
    options.add_argument("--copies", type=int, default=6, help="replicas of every segment")
    return options


def fill(cluster, table, rows, segments):
    """Makes a table of so many rows and segments: each statement begins a segment of its own."""
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        session.run(f"CREATE TABLE {table} (id BIGINT, x BIGINT)")
        for index in range(segments):
            first, last = rows * index // segments, rows * (index + 1) // segments - 1
            numbers = f"generate_series({first}, {last})"
            session.run(f"INSERT INTO {table} SELECT value AS id, value * 31 AS x FROM {numbers}")


def measure_row(cluster, runs):
    """Seconds of the query for one row and of one without a table, by client, and records of the former.

    Clients run one after the other: their times are compared with a target, and not with each other.
    """
    ids = itertools.cycle(range(SMALL_ROWS))
    same, others = (lambda: SMALL_ROWS // 2), (lambda: next(ids))
    clients = {
        "pyarrow.flight, the same text": (Flight, same),
        "pyarrow.flight, another text": (Flight, others),
        "ADBC, the same text (prepared once)": (Adbc, same),
        "ADBC, another text (prepared anew)": (Adbc, others),
    }
    seconds = {query: {} for query in ("row", "nothing")}
    for client, (kind, number) in clients.items():
        with contextlib.ExitStack() as stack:
            session = kind(cluster, stack)

            def ask(sql, session=session, number=number):
                table = session.run(sql.format(number()))
                assert table.num_rows == 1, f"{table.num_rows} rows: {sql}"

            for query, sql in (("row", ROW), ("nothing", NOTHING)):
                case = {query: lambda ask=ask, sql=sql: ask(sql)}
                interleave(case, 20)
                seconds[query][client] = interleave(case, runs)[query]
    with contextlib.ExitStack() as stack:
        flight = Flight(cluster, stack)
        return seconds, [flight.record(ROW.format(next(ids))) for _ in range(50)]


def measure_segments(cluster, runs):
    """Seconds of the count, by table, and a record of each."""
    with contextlib.ExitStack() as stack:
        adbc, flight = {table: Adbc(cluster, stack) for table in ("one", "many")}, Flight(cluster, stack)
        cases = {table: lambda table=table: adbc[table].run(COUNT.format(table)) for table in adbc}
        interleave(cases, 3)
        records = {table: [flight.record(COUNT.format(table)) for _ in range(9)] for table in adbc}
        return interleave(cases, runs), records


def run(options, folder, stack):
    cluster = QuietCluster(folder, options.nodes, options.copies)
    stack.callback(cluster.stop)
    fill(cluster, "small", SMALL_ROWS, segments=1)
    row_times, row_records = measure_row(cluster, options.runs)
    rows = options.segments * SEGMENT_ROWS
    fill(cluster, "one", rows, segments=1)
    fill(cluster, "many", rows, options.segments)
    count_times, count_records = measure_segments(cluster, options.count_runs)
    return {
        "count_runs": options.count_runs,
        "nodes": options.nodes,
        "copies": options.copies,
        "row_seconds": row_times,
        "row_records": row_records,
        "count_seconds": count_times,
        "count_records": count_records,
    }


def percentile_95(seconds):
    """The value that 95 % are below."""
    return statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]


def median_record(records, key):
    """The median of one of the records' figures."""
    return statistics.median(record[key] for record in records)


def at_the_coordinator(records):
    """The times that the coordinator took note of, for people."""
    planning, total = (median_record(records, f"{phase}_micros") / 1000 for phase in ("planning", "total"))
    return f"at the coordinator, by its records: {total:.2f} ms, of which planning {planning:.2f} ms"


def verdict(value, target):
    return "reached" if value < target else "missed"


def report(result):
    """Prints the cost of a query by client, then that of a segment."""
    print(heading(result, "the frame of a query"))
    print(f"{result['nodes']} storage nodes, {result['copies']} copies, processes on loopback")
    print()
    print(f"{ROW.format('...'):<36} {'median ms':>10} {'p95 ms':>8} {'SELECT 1 ms':>12}   target {ROW_TARGET_MS:g} ms")
    for client, seconds in result["row_seconds"]["row"].items():
        median, p95 = (1000 * value for value in (statistics.median(seconds), percentile_95(seconds)))
        nothing = 1000 * statistics.median(result["row_seconds"]["nothing"][client])
        print(f"{client:<36} {median:>10.2f} {p95:>8.2f} {nothing:>12.2f}   {verdict(median, ROW_TARGET_MS)}")
    print(at_the_coordinator(result["row_records"]))
    print()
    head = f"{'segments':>10} {'median ms':>10} {'p95 ms':>8} {'requests':>9} {'storage CPU ms':>15}"
    print(f"{COUNT.format('t')}, median of {result['count_runs']}, {SEGMENT_ROWS} rows for each of the many segments")
    print(head)
    medians, scanned = {}, {}
    for table, seconds in result["count_seconds"].items():
        records = result["count_records"][table]
        medians[table], scanned[table] = statistics.median(seconds), median_record(records, "segments_scanned")
        times = f"{1000 * medians[table]:>10.2f} {1000 * percentile_95(seconds):>8.2f}"
        storage = median_record(records, "storage_cpu_micros") / 1000
        requests = median_record(records, "requests")
        print(f"{scanned[table]:>10,.0f} {times} {requests:>9.0f} {storage:>15.2f}   {at_the_coordinator(records)}")
    micros = 1e6 * (medians["many"] - medians["one"]) / max(scanned["many"] - scanned["one"], 1)
    outcome = verdict(micros, SEGMENT_TARGET_MICROS)
    print(f"each further segment: {micros:.1f} us; target {SEGMENT_TARGET_MICROS:g} us: {outcome}")


if __name__ == "__main__":
    main(arguments(), run, report)

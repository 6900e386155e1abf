"""Runs TPC-H on Aubade (a cluster of processes on loopback), DataFusion and DuckDB, interleaved.

With --buffer-pool every table is in Aubade's buffer pool, results of fragments are not kept, and the peers have their
tables in memory as well.

Every engine has a process of its own that stays up, and answers the same query texts over the same
generated data. Within a repetition each query goes to every engine before the next query, and the
order of the engines rotates, so that a busy moment of the machine hits all of them alike.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "clients"))

from cluster import Cluster, binary  # noqa: E402
from records import query_record  # noqa: E402

PEERS = ("datafusion", "duckdb")
PEERS_OF_POOL = ("datafusion-memory", "duckdb", "duckdb-tables")
# By the prefixes of their columns.
TABLES = {
    "c": "customer",
    "l": "lineitem",
    "n": "nation",
    "o": "orders",
    "p": "part",
    "ps": "partsupp",
    "r": "region",
    "s": "supplier",
}
MIB = 1024 * 1024


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor")
    parser.add_argument("--runs", type=int, default=5, help="timed repetitions of every query")
    parser.add_argument("--queries", default="1-22", help="for example 1,6 or 1-22")
    parser.add_argument("--nodes", type=int, default=6, help="storage nodes")
    parser.add_argument("--copies", type=int, default=6, help="replicas of every segment")
    parser.add_argument("--memory-limit", default="8GiB", help="of the coordinator")
    parser.add_argument(
        "--fragment-cache",
        default="0",
        help="results of fragments that the coordinator and each storage node keep, as 64MiB (default: none)",
    )
    parser.add_argument("--buffer-pool", default="0", help="of the coordinator, as 8GiB: all tables are in it (default: none)")
    parser.add_argument("--work-dir", type=pathlib.Path, help="keep the data here (default: a temporary folder)")
    parser.add_argument("--json", type=pathlib.Path, help="write all measurements to this file")
    return parser.parse_args()


def numbers(text):
    """The query numbers in a text like `1,3-5`."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


class BenchCluster(Cluster):
    """A cluster whose storage nodes keep as many results of fragments as they are told."""

    def __init__(self, *arguments, fragment_cache, **options):
        self.fragment_cache = fragment_cache
        super().__init__(*arguments, **options)

    def start_node(self, index, *options):
        return super().start_node(index, "--fragment-cache", self.fragment_cache, *options)


class Worker:
    """The process of one engine."""

    def __init__(self, name, *where):
        self.name = name
        command = [sys.executable, str(HERE / "engines.py"), name, *map(str, where)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.name} process ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, sql, rows=False):
        self.process.stdin.write(json.dumps({"sql": sql, "rows": rows}) + "\n")
        self.process.stdin.flush()
        reply = self._read()
        if "error" in reply:
            raise SystemExit(f"{self.name} failed:\n{reply['error']}\n{sql}")
        return reply

    def stop(self):
        self.process.stdin.close()
        self.process.wait(30)


def generate(folder, scale):
    """Writes the Parquet files that DataFusion and DuckDB read."""
    target = folder / f"tpch-{scale:g}"
    if not (target / "done").exists():
        tool = pathlib.Path(sys.executable).with_name("tpchgen-cli")
        subprocess.run([tool, "parquet", "-s", f"{scale:g}", "-o", str(target)], check=True, stdout=subprocess.DEVNULL)
        (target / "done").touch()
    return target


def column_bytes(data):
    """What each column weighs in its Parquet file, by name."""
    import pyarrow.parquet

    sizes = {}
    for table in TABLES.values():
        metadata = pyarrow.parquet.ParquetFile(data / f"{table}.parquet").metadata
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                sizes[column.path_in_schema] = sizes.get(column.path_in_schema, 0) + column.total_compressed_size
    return sizes


def weight(sql, sizes):
    """What the columns weigh that a query names, each of them once."""
    prefixes = "|".join(TABLES)
    return sum(sizes.get(name, 0) for name in set(re.findall(rf"\b(?:{prefixes})_[a-z0-9]+\b", sql.lower())))


def load(cluster, scale):
    """Loads Aubade's tables; returns seconds and the stored bytes of one copy."""
    started = time.perf_counter()
    cluster.run("tpch", "load", "--scale", f"{scale:g}", "--url", cluster.uri, timeout=7200)
    seconds = time.perf_counter() - started
    return seconds, sum(table["bytes"] for table in cluster.status()["tables"])


def load_files(cluster, data):
    """Loads the Parquet files of all tables; returns seconds, and the bytes of the files and of one copy as stored."""
    files = {table: data / f"{table}.parquet" for table in TABLES.values()}
    started = time.perf_counter()
    for table, file in files.items():
        cluster.run("load", table, str(file), "--url", cluster.uri, timeout=7200)
    seconds = time.perf_counter() - started
    stored = sum(table["bytes"] for table in cluster.status()["tables"])
    return seconds, sum(file.stat().st_size for file in files.values()), stored


def same(left, right):
    """Whether two results agree: as multisets of rows, numbers within what their types can tell."""

    def key(row):
        return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]

    def equal(a, b):
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-5)
        return a == b

    if len(left) != len(right):
        return False
    pairs = zip(sorted(left, key=key), sorted(right, key=key))
    return all(len(a) == len(b) and all(map(equal, a, b)) for a, b in pairs)


def warm_up(workers, queries):
    """Runs every query once everywhere; returns the numbers of those whose results differ."""
    differing = []
    for number, sql in queries.items():
        results = {name: worker.run(sql, rows=True)["rows"] for name, worker in workers.items()}
        if not all(same(results["duckdb"], rows) for rows in results.values()):
            differing.append(number)
    return differing


def measure(workers, queries, runs):
    """Seconds of every timed run, by engine and query, and the engines' peak memory."""
    times = {name: {number: [] for number in queries} for name in workers}
    peaks = dict.fromkeys(workers, 0)
    names = list(workers)
    for run in range(runs):
        for position, (number, sql) in enumerate(queries.items()):
            turn = (run + position) % len(names)
            for name in names[turn:] + names[:turn]:
                reply = workers[name].run(sql)
                times[name][number].append(reply["seconds"])
                peaks[name] = max(peaks[name], reply["peak_memory_bytes"])
        print(f"repetition {run + 1} of {runs} done", file=sys.stderr)
    return times, peaks


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def fewer(wire, columns):
    """By how many per cent of the columns' bytes fewer went over the wire."""
    return f"{100 * (1 - wire / columns):.2f} %" if columns else "-"


def table_of_times(medians, records, columns):
    """The printed table: one line per query, then totals and geometric means."""
    peers = [name for name in medians if name != "aubade"]
    head = f"{'query':>8} {'aubade s':>10}" + "".join(f" {name + ' s':>{len(name) + 3}}" for name in peers)
    head += "".join(f" {'vs ' + name:>{len(name) + 4}}" for name in peers)
    lines = [head + f" {'columns MiB':>12} {'wire MiB':>10} {'fewer':>8} {'segments':>10}"]

    def line(label, seconds, rest=""):
        times = "".join(f" {seconds[name]:>{len(name) + 3}.4f}" for name in peers)
        ratios = "".join(f" {seconds['aubade'] / seconds[name]:>{len(name) + 3}.2f}x" for name in peers)
        lines.append(f"{label:>8} {seconds['aubade']:>10.4f}{times}{ratios}{rest}")

    for number, record in records.items():
        segments = f"{record['segments_scanned']}/{record['segments_total']}"
        wire = record["bytes_wire"]
        rest = f" {columns[number] / MIB:>12.2f} {wire / MIB:>10.2f} {fewer(wire, columns[number]):>8} {segments:>10}"
        line(f"q{number}", {name: medians[name][number] for name in medians}, rest)
    all_wire, all_columns = sum(record["bytes_wire"] for record in records.values()), sum(columns.values())
    rest = f" {all_columns / MIB:>12.2f} {all_wire / MIB:>10.2f} {fewer(all_wire, all_columns):>8}"
    line("total", {name: sum(medians[name].values()) for name in medians}, rest)
    line("geomean", {name: geometric_mean(medians[name].values()) for name in medians})
    return "\n".join(lines)


def versions():
    aubade = subprocess.run([binary(), "--version"], capture_output=True, text=True).stdout.strip()
    peers = {name: importlib.metadata.version(name) for name in PEERS}
    return {"aubade": aubade.removeprefix("aubade ") or "unknown", **peers}


def run(options, folder):
    data = generate(folder, options.scale)
    (folder / "cluster").mkdir()
    cluster = BenchCluster(
        folder / "cluster",
        options.nodes,
        options.copies,
        serve_arguments=(
            *("--memory-limit", options.memory_limit, "--buffer-pool", options.buffer_pool),
            *("--fragment-cache", options.fragment_cache),
        ),
        fragment_cache=options.fragment_cache,
    )
    workers = {}
    try:
        load_seconds, file_bytes, copy_bytes = load_files(cluster, data)
        queries = {
            number: cluster.run("tpch", "query", str(number)).stdout.strip().rstrip(";")
            for number in numbers(options.queries)
        }
        pooled = options.buffer_pool != "0"
        statements = [f"CACHE TABLE {table}" for table in TABLES.values()] + ["SET aubade.fragment_cache = off"]
        workers["aubade"] = Worker("aubade", cluster.uri, *(statements if pooled else []))
        for name in PEERS_OF_POOL if pooled else PEERS:
            workers[name] = Worker(name, data)
        differing = warm_up(workers, queries)
        times, peaks = measure(workers, queries, options.runs)
        sizes = column_bytes(data)
        records = {number: query_record(cluster.uri, sql) for number, sql in queries.items()}
        peaks["aubade"] = cluster.coordinator.peak_memory_bytes()
        node_peaks = [node.peak_memory_bytes() for node in cluster.nodes]
    finally:
        for worker in workers.values():
            worker.stop()
        cluster.stop()
    return {
        "scale": options.scale,
        "runs": options.runs,
        "cpus": os.cpu_count(),
        "nodes": options.nodes,
        "copies": options.copies,
        "fragment_cache": options.fragment_cache,
        "buffer_pool": options.buffer_pool,
        "versions": versions(),
        "seconds": times,
        "median_seconds": {name: {n: statistics.median(all_) for n, all_ in by.items()} for name, by in times.items()},
        "records": records,
        "results_differ": differing,
        "load_seconds": load_seconds,
        "load_bytes_per_copy": copy_bytes,
        "load_file_bytes": file_bytes,
        "peak_memory_bytes": peaks,
        "storage_node_peak_memory_bytes": node_peaks,
        "column_bytes": {number: weight(sql, sizes) for number, sql in queries.items()},
    }


def report(result):
    """Prints everything that a person wants to know of the run."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"TPC-H scale {result['scale']:g}, median of {result['runs']}, {result['cpus']} CPUs; {versions}")
    print(
        f"aubade: {result['nodes']} storage nodes, {result['copies']} copies, fragment cache {result['fragment_cache']}, "
        f"buffer pool {result['buffer_pool']}, ADBC client; peers: in process, over Parquet, or in memory where they are named so"
    )
    print()
    print(table_of_times(result["median_seconds"], result["records"], result["column_bytes"]))
    print("columns: what the columns that a query names weigh as Parquet, each once; fewer: what of it did not go over the wire")
    print()
    if result["results_differ"]:
        print(f"RESULTS DIFFER: {', '.join(f'q{number}' for number in result['results_differ'])}")
    else:
        print("results: the same from every engine")
    seconds = result["load_seconds"]
    loaded, stored = result["load_file_bytes"] / 1e6, result["load_bytes_per_copy"] / 1e6
    print(
        f"load: {loaded:.1f} MB of Parquet files in {seconds:.1f} s, {loaded / seconds:.1f} MB/s per copy; stored as "
        f"{stored:.1f} MB, {stored / seconds:.1f} MB/s per copy"
    )
    peaks = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in result["peak_memory_bytes"].items())
    nodes = ", ".join(f"{peak / MIB:.0f}" for peak in result["storage_node_peak_memory_bytes"])
    print(f"peak resident memory: {peaks} (aubade: the coordinator); storage nodes {nodes} MiB")


def main():
    options = arguments()
    folder = options.work_dir or pathlib.Path(tempfile.mkdtemp(prefix="aubade-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "cluster", ignore_errors=True)
    try:
        result = run(options, folder)
    finally:
        shutil.rmtree(folder / "cluster", ignore_errors=True)
        if not options.work_dir:
            shutil.rmtree(folder, ignore_errors=True)
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 1 if result["results_differ"] else 0


if __name__ == "__main__":
    sys.exit(main())

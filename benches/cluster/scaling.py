"""How a scan gets faster with more storage nodes, where the nodes are what is scarce.

Every storage node is held to a share of a core by a control group of its own, so that on a small machine
eight of them are as far from its limit as one. Clusters of 1, 2, 4 and 8 nodes hold the same rows, one
copy, and are asked in turn.
"""

from __future__ import annotations

import pathlib
import statistics

import pyarrow.parquet

from common import Adbc, QuietCluster, heading, interleave, main, parser, require, tpch_query
from cluster import run as run_binary
from peers import numbers

# What q1 and q6 read; other columns would only make loading slower.
COLUMNS = "l_returnflag, l_linestatus, l_quantity, l_extendedprice, l_discount, l_tax, l_shipdate"
QUERIES = (1, 6)
TARGET = 0.85
# Shorter than the usual 100 ms, so that a node which has used up its share does not wait long.
PERIOD_MICROS = 20_000


class CpuGroup:
    """A control group that holds the processes in it to a share of a core, of version 1 or 2, whichever is mounted."""

    def __init__(self, name: str, stack):
        hierarchy, self.version = self._hierarchy()
        if self.version == 2:
            (hierarchy / "cgroup.subtree_control").write_text("+cpu")
        self.folder = hierarchy / f"aubade-scaling-{name}"
        self.folder.mkdir()
        stack.callback(self.folder.rmdir)

    @staticmethod
    def _hierarchy() -> tuple[pathlib.Path, int]:
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            _, folder, kind, options, *_ = line.split()
            hierarchy = pathlib.Path(folder)
            if kind == "cgroup" and "cpu" in options.split(","):
                return hierarchy, 1
            if kind == "cgroup2" and "cpu" in (hierarchy / "cgroup.controllers").read_text().split():
                return hierarchy, 2
        raise OSError("no control group hierarchy with the cpu controller is mounted")

    def limit(self, pid: int, share: float) -> None:
        """Takes the process in, and holds it to `share` of a core."""
        quota = int(share * PERIOD_MICROS)
        if self.version == 1:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROS))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.folder / "cpu.max").write_text(f"{quota} {PERIOD_MICROS}")
        (self.folder / "cgroup.procs").write_text(str(pid))


class CountedCluster(QuietCluster):
    """A cluster that tells what its storage nodes hold and use."""

    def node_seconds(self) -> float:
        """CPU time that the storage nodes have used so far."""
        return sum(node.cpu_seconds() for node in self.nodes)

    def segments_by_node(self) -> list[int]:
        """How many segments each node holds, the busiest first."""
        return sorted((node["replicas"] for node in self.status()["nodes"]), reverse=True)


def arguments():
    options = parser(__doc__, runs=3)
    # At a tenth of a core, one node needs seconds for what two cores read in a fraction of one.
    options.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor")
    # A segment has a million rows when nothing ends it earlier, so that lineitem would be six of them, fewer than there
    # are nodes. Placement is by hash, and of s segments on n nodes the busiest holds about 1 + 1.4 * sqrt(n / s) times
    # its even share: 1.18 with these. More would be more even still, and measure the cost of a segment instead of a row.
    options.add_argument("--segments", type=int, default=512, help="segments of lineitem, each an insert of its own")
    options.add_argument("--nodes", default="1,2,4,8", help="storage nodes of each cluster; all are compared with the fewest")
    options.add_argument("--share", type=float, default=0.1, help="of a core, for each storage node")
    return options


def lineitem(folder, scale):
    """The columns of lineitem, as an Arrow table."""
    embedded, file = str(folder / "generated"), folder / "lineitem.parquet"
    run_binary("tpch", "load", "--scale", f"{scale:g}", "--data-dir", embedded)
    run_binary("sql", "--data-dir", embedded, "-c", f"COPY (SELECT {COLUMNS} FROM lineitem) TO '{file}'")
    return pyarrow.parquet.read_table(file)


def fill(sessions, table, segments):
    """Writes the rows to every cluster, each segment by a statement of its own, since one statement fills segments up."""
    for index in range(segments):
        first, end = (table.num_rows * at // segments for at in (index, index + 1))
        part = table.slice(first, end - first)
        for session in sessions:
            session.cursor.adbc_ingest("lineitem", part, mode="create_append")


def make_groups(count, stack):
    """Control groups for so many nodes; ends the bench where this machine cannot have them."""
    try:
        return [CpuGroup(str(index), stack) for index in range(count)]
    except OSError as error:
        require(False, f"scaling: needs root, and control groups of cpu: {error}")


def run(options, folder, stack):
    sizes = numbers(options.nodes)
    groups = iter(make_groups(sum(sizes), stack))
    clusters = {}
    for size in sizes:
        (folder / f"cluster{size}").mkdir()
        # A zone for each node: placement spreads over zones first, and a zone with fewer nodes would have more for each.
        clusters[size] = CountedCluster(folder / f"cluster{size}", nodes=size, copies=1, zones=size)
        stack.callback(clusters[size].stop)
    sessions = {size: Adbc(cluster, stack) for size, cluster in clusters.items()}
    fill(sessions.values(), lineitem(folder, options.scale), options.segments)

    queries = {number: tpch_query(number) for number in QUERIES}
    cpu = {(number, size): [] for number in queries for size in sizes}

    def ask(number, size):
        before = clusters[size].node_seconds()
        sessions[size].run(queries[number])
        cpu[number, size].append(clusters[size].node_seconds() - before)

    cases = {(number, size): lambda number=number, size=size: ask(number, size) for number, size in cpu}
    # Warm and quick, before the nodes are slowed down.
    interleave(cases, 1)
    for used in cpu.values():
        used.clear()
    for cluster in clusters.values():
        for node in cluster.nodes:
            next(groups).limit(node.process.pid, options.share)
    times = interleave(cases, options.runs)
    return {
        "scale": options.scale,
        "share": options.share,
        "segments": options.segments,
        "segments_by_node": {size: cluster.segments_by_node() for size, cluster in clusters.items()},
        "seconds": {number: {size: times[number, size] for size in sizes} for number in queries},
        "node_cpu_seconds": {number: {size: cpu[number, size] for size in sizes} for number in queries},
    }


def report(result):
    """Prints one line per query and number of nodes, then how the segments were spread."""
    what = f"TPC-H scale {result['scale']:g}, storage nodes of {result['share']:g} cores"
    print(heading(result, what))
    print(f"1 copy, lineitem in {result['segments']} segments, ADBC client")
    print("of linear: speed-up against more nodes; of placement: against what the busiest node's share leaves room for;")
    print("nodes busy: CPU time that they used, of what they may use")
    print()
    head = f"{'query':>6} {'nodes':>6} {'median s':>9} {'speed-up':>9} {'of linear':>10} {'of placement':>13} {'nodes busy':>11}"
    print(f"{head}   target {TARGET:g}")
    spread = result["segments_by_node"]
    first = min(spread)
    for number, by_size in result["seconds"].items():
        base = statistics.median(by_size[first])
        for size, seconds in by_size.items():
            median = statistics.median(seconds)
            speed_up = base / median
            of_linear = speed_up * first / size
            # As fast as the busiest node lets it be: what is missing from 1 is not the placement's.
            of_placement = speed_up * spread[size][0] / spread[first][0]
            cpu = sum(result["node_cpu_seconds"][number][size])
            busy = cpu / (sum(seconds) * size * result["share"])
            verdict = "" if size == first else "   reached" if of_linear >= TARGET else "   missed"
            shares = f"{of_linear:>10.2f} {of_placement:>13.2f} {100 * busy:>9.0f} %"
            print(f"{f'q{number}':>6} {size:>6} {median:>9.3f} {speed_up:>8.2f}x {shares}{verdict}")
    print()
    for size, held in spread.items():
        busiest = held[0] * size / sum(held)
        print(f"segments of each of {size}: {', '.join(map(str, held))}; the busiest has {busiest:.2f} of an even share")


if __name__ == "__main__":
    main(arguments(), run, report)

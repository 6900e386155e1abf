"""What pushing down is worth where the network is slow: coordinator and storage nodes on either side of a link.

The storage nodes run in a network namespace of their own. A veth pair joins it to the coordinator and the
client, and a token bucket holds either direction to a rate. Each query is asked with what the planner would
push (`SET aubade.pushdown = auto`) and with nothing pushed (`off`): whole columns cross the link then, in the
bytes that they need, or in their own types (`SET aubade.wire_encoding = off`) as other engines send them.
"""

from __future__ import annotations

import os
import shutil
import statistics

from common import Adbc, Flight, QuietCluster, heading, interleave, main, parser, require, system, tpch_query
from engines import rows_of
from peers import MIB, load, numbers, same

MODES = {
    "auto": ("SET aubade.pushdown = auto",),
    "off": ("SET aubade.pushdown = off",),
    "plain": ("SET aubade.pushdown = off", "SET aubade.wire_encoding = off"),
}
TARGET = 10.0


class Link:
    """A network namespace, and a veth pair between it and the one we are in."""

    # Fixed names: where two runs measured at a time, neither would measure anything.
    NAMESPACE = "aubade-link"
    NEAR, FAR = "aubade-near", "aubade-far"
    # From the block that RFC 2544 sets aside for benchmarks.
    NEAR_ADDRESS, FAR_ADDRESS = "198.18.0.1", "198.18.0.2"

    def __init__(self, stack):
        system("ip", "netns", "add", self.NAMESPACE)
        stack.callback(system, "ip", "netns", "delete", self.NAMESPACE)
        far = ("peer", "name", self.FAR, "netns", self.NAMESPACE)
        system("ip", "link", "add", self.NEAR, "type", "veth", *far)
        # Takes the other end with it, at once; a namespace goes only after its last process.
        stack.callback(system, "ip", "link", "delete", self.NEAR)
        ends = ((), self.NEAR, self.NEAR_ADDRESS), (self.inside(), self.FAR, self.FAR_ADDRESS)
        for prefix, device, address in ends:
            system(*prefix, "ip", "address", "add", f"{address}/30", "dev", device)
            system(*prefix, "ip", "link", "set", device, "up")
        system(*self.inside(), "ip", "link", "set", "lo", "up")

    def inside(self) -> tuple[str, ...]:
        """What goes before a command that is to run in the namespace."""
        return ("ip", "netns", "exec", self.NAMESPACE)

    def _ends(self):
        return ((), self.NEAR), (self.inside(), self.FAR)

    def limit(self, rate: str) -> None:
        """Holds both directions to `rate`: each end limits what it sends."""
        # The burst is a millisecond of a gigabit, and more than the largest packet that is handed down in one piece.
        bucket = ("tbf", "rate", rate, "burst", "128kb", "latency", "50ms")
        for prefix, device in self._ends():
            system(*prefix, "tc", "qdisc", "add", "dev", device, "root", *bucket)

    def unlimit(self) -> None:
        """Takes the limits off."""
        for prefix, device in self._ends():
            system(*prefix, "tc", "qdisc", "delete", "dev", device, "root")


class LinkedCluster(QuietCluster):
    """A cluster whose storage nodes are at the far end of a link."""

    def __init__(self, link: Link, *arguments, **options):
        self.link = link
        super().__init__(*arguments, **options)

    def start_node(self, index, *options):
        return super().start_node(index, "--listen", f"{Link.FAR_ADDRESS}:0", *options)

    def command(self, arguments):
        inside = self.link.inside() if arguments[0] == "storage-node" else ()
        return [*inside, *super().command(arguments)]


def arguments():
    options = parser(__doc__, runs=5)
    options.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor")
    options.add_argument("--queries", default="1,6,14,15,19", help="for example 1,6 or 1-22")
    options.add_argument("--rate", default="1gbit", help="of the link, each way, as tc writes it")
    options.add_argument("--nodes", type=int, default=6, help="storage nodes")
    options.add_argument("--copies", type=int, default=6, help="replicas of every segment")
    return options


def make_link(rate, stack):
    """The link, without a limit yet; ends the bench where this machine cannot have one."""
    require(os.geteuid() == 0, "link: needs root, to make a network namespace and to limit a rate")
    for tool in ("ip", "tc"):
        require(shutil.which(tool), f"link: there is no `{tool}`; on Debian and Ubuntu, install iproute2")
    link = Link(stack)
    try:
        link.limit(rate)
    except RuntimeError as error:
        require(False, f"link: the rate cannot be limited; does the kernel have sch_tbf? {error}")
    link.unlimit()
    return link


def run(options, folder, stack):
    link = make_link(options.rate, stack)
    cluster = LinkedCluster(link, folder, options.nodes, options.copies)
    stack.callback(cluster.stop)
    load(cluster, options.scale)
    link.limit(options.rate)

    queries = {number: tpch_query(number) for number in numbers(options.queries)}
    adbc = {mode: Adbc(cluster, stack) for mode in MODES}
    flight = {mode: Flight(cluster, stack) for mode in MODES}
    for mode in MODES:
        for session in (adbc[mode], flight[mode]):
            for setting in MODES[mode]:
                session.run(setting)
    records, differing = {}, []
    for number, sql in queries.items():
        records[number] = {mode: flight[mode].record(sql) for mode in MODES}
        first, *others = (rows_of(adbc[mode].run(sql)) for mode in MODES)
        if not all(same(first, rows) for rows in others):
            differing.append(number)
    cases = {
        (number, mode): lambda mode=mode, sql=sql: adbc[mode].run(sql)
        for number, sql in queries.items()
        for mode in MODES
    }
    times = interleave(cases, options.runs)
    return {
        "scale": options.scale,
        "rate": options.rate,
        "nodes": options.nodes,
        "copies": options.copies,
        "seconds": {number: {mode: times[number, mode] for mode in MODES} for number in queries},
        "records": records,
        "results_differ": differing,
    }


def report(result):
    """Prints one line per query."""
    what = f"TPC-H scale {result['scale']:g} over a link of {result['rate']} each way"
    print(heading(result, what))
    print(f"{result['nodes']} storage nodes, {result['copies']} copies, ADBC client")
    print("auto: aubade.pushdown, off: whole columns, plain: whole columns in their own types")
    print()
    head = f"{'query':>6} {'auto s':>9} {'off s':>9} {'plain s':>9} {'off/auto':>9} {'plain/auto':>11}"
    print(f"{head} {'auto MiB':>9} {'off MiB':>9} {'plain MiB':>10} {'plain Mbit/s':>13}   target {TARGET:g}x of plain")
    for number, seconds in result["seconds"].items():
        auto, off, plain = (statistics.median(seconds[mode]) for mode in MODES)
        auto_bytes, off_bytes, plain_bytes = (result["records"][number][mode]["bytes_wire"] for mode in MODES)
        # What crossed in the time of the whole query: how near the link is to being all that counts.
        rate = plain_bytes * 8 / plain / 1e6
        sizes = f"{auto_bytes / MIB:>9.3f} {off_bytes / MIB:>9.1f} {plain_bytes / MIB:>10.1f} {rate:>13.0f}"
        verdict = "reached" if plain / auto >= TARGET else "missed"
        times = f"{auto:>9.4f} {off:>9.4f} {plain:>9.4f} {off / auto:>8.1f}x {plain / auto:>10.1f}x"
        print(f"{f'q{number}':>6} {times} {sizes}   {verdict}")
    print()
    differing = ", ".join(f"q{number}" for number in result["results_differ"])
    print(f"RESULTS DIFFER: {differing}" if differing else "results: the same either way")


if __name__ == "__main__":
    main(arguments(), run, report)

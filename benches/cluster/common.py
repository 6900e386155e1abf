"""What the benches in this folder share: options, clients, interleaved timing, and the frame of a report."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Callable, Hashable

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT / "tests" / "clients"), str(ROOT / "benches" / "peers")]

import adbc_driver_flightsql.dbapi  # noqa: E402

from cluster import NO_CACHES, Cluster, Server, run as run_binary  # noqa: E402
from records import HeaderRecorder, action, connect, read, statement  # noqa: E402


def require(condition: object, message: str) -> None:
    """Ends the bench with exit code 2 where this machine cannot run it."""
    if not condition:
        print(message, file=sys.stderr)
        raise SystemExit(2)


def system(*command: str) -> str:
    """Runs a tool of the system; its error becomes ours."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def parser(description: str, runs: int) -> argparse.ArgumentParser:
    """The options that every bench has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--runs", type=int, default=runs, help="timed repetitions")
    parser.add_argument("--json", type=pathlib.Path, help="write all measurements to this file")
    return parser


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, pathlib.Path, contextlib.ExitStack], dict],
    report: Callable[[dict], None],
) -> None:
    """Runs a bench in a folder of its own, cleans up whatever happens, and reports.

    `run` hands the stack everything that has to be undone.
    """
    options = parser.parse_args()
    require(options.runs > 0, "--runs: at least 1")
    # SIGTERM unwinds like Ctrl-C, so that nothing is left of the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="aubade-bench-") as folder, contextlib.ExitStack() as stack:
        result = run(options, pathlib.Path(folder), stack)
    result = {
        "runs": options.runs,
        "cpus": os.cpu_count(),
        "versions": {
            "aubade": run_binary("--version").stdout.split()[-1],
            **{name: importlib.metadata.version(name) for name in ("adbc-driver-flightsql", "pyarrow")},
        },
        **result,
    }
    report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def heading(result: dict, what: str) -> str:
    """The first line of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{what}, median of {result['runs']}, {result['cpus']} CPUs; {versions}"


def tpch_query(number: int) -> str:
    """The text of a TPC-H query."""
    return run_binary("tpch", "query", str(number)).stdout.strip().rstrip(";")


class QuietCluster(Cluster):
    """A cluster that does nothing in the background and keeps no columns and no results: each run does all of its work."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, serve_arguments=NO_CACHES, **options)

    def start_node(self, index, *options):
        return super().start_node(index, "--scrub-rate", "0", "--fragment-cache", "0", *options)


class Coordinator:
    """One more coordinator, of its own, over the storage nodes of a cluster."""

    def __init__(self, cluster: Cluster, name: str, stack: contextlib.ExitStack, *options: str):
        command = ["serve", "--cluster", cluster.url, "--listen", "127.0.0.1:0", *options]
        self.server = Server(name, cluster.command(command), cluster.folder / f"{name}.log")
        stack.callback(self.server.stop)
        self.server.wait_ready()

    @property
    def uri(self) -> str:
        """Where its Flight SQL service is."""
        return f"grpc://{self.server.address}"

    def settle(self) -> None:
        """Waits until nothing is loaded into its pool any more, which whoever comes next would feel. Is not timed."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            before = self.server.cpu_seconds()
            time.sleep(0.3)
            if self.server.cpu_seconds() - before < 0.03:
                return


class Adbc:
    """A session over the ADBC driver, as a user would have it."""

    def __init__(self, cluster: Cluster | Coordinator, stack: contextlib.ExitStack):
        connection = adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True)
        self.cursor = stack.enter_context(stack.enter_context(connection).cursor())

    def run(self, sql: str):
        """The result as a table. The driver prepares a text unless it is the same as before."""
        self.cursor.execute(sql)
        return self.cursor.fetch_arrow_table()


class Flight:
    """A session over plain Flight, which can ask what a query cost the cluster."""

    def __init__(self, cluster: Cluster | Coordinator, stack: contextlib.ExitStack):
        self._recorder = HeaderRecorder()
        self._client = stack.enter_context(connect(cluster.uri, middleware=[self._recorder]))

    def run(self, sql: str):
        """The result as a table."""
        _, (table,) = read(self._client, statement(sql))
        return table

    @property
    def query_id(self) -> str:
        """The id of the query that ran last."""
        return self._recorder.headers["x-aubade-query-id"]

    def record_of(self, query_id: str) -> dict:
        """The record that the coordinator kept of a query."""
        return action(self._client, "aubade.query_record", query_id.encode())

    def record(self, sql: str) -> dict:
        """Runs `sql` and returns the record that the coordinator kept of it."""
        self.run(sql)
        return self.record_of(self.query_id)


def metric(session, name: str) -> int:
    """The value of a counter or gauge of the coordinator."""
    return session.run(f"SELECT value FROM system.metrics WHERE name = '{name}'").column("value")[0].as_py()


def interleave(
    cases: dict[Hashable, Callable[[], object]],
    runs: int,
    before: Callable[[Hashable], object] = lambda name: None,
) -> dict[Hashable, list[float]]:
    """Seconds of every case in every run; `before` is called with its name and is not timed.

    All cases take their turn in each run, and the first one moves on from run to run, so that a busy
    moment of the machine hits all of them alike.
    """
    seconds: dict[Hashable, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for run in range(runs):
        turn = run % len(names)
        for name in names[turn:] + names[:turn]:
            before(name)
            started = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds

"""Starts and stops a cluster of Aubade processes, for the client tests and for the benches in Python."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import threading
import time
from typing import Callable

READY = re.compile(r"listening on (?:grpc://)?(\S+:\d+)")
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0


def binary() -> str:
    """The binary under test."""
    path = os.environ.get("AUBADE_BIN")
    if not path:
        raise SystemExit("AUBADE_BIN names no binary; start the tests with tests/clients/run.sh")
    return path


def eventually(what: str, condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Returns once `condition` holds; raises when it does not before `timeout`."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {timeout:.0f} s: {what}")
        time.sleep(0.05)


def run(*arguments: str, check: bool = True, timeout: float = 600, **options) -> subprocess.CompletedProcess:
    """Runs the binary to its end and returns what it wrote."""
    done = subprocess.run(
        [binary(), *arguments], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **options
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"aubade {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


class Server:
    """One child process that says `listening on ...` on its standard output when it is ready."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        log: pathlib.Path,
        cwd: pathlib.Path | None = None,
        env: dict[str, str] | None = None,
    ):
        self.name = name
        self.log = log
        self.address = ""
        self._ready = threading.Event()
        self._log_file = open(log, "ab")
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log_file, cwd=cwd, env=env
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._log_file.write(line)
            self._log_file.flush()
            match = READY.search(line.decode(errors="replace"))
            if match and not self.address:
                self.address = match.group(1)
                self._ready.set()
        # End of file: the process is gone; whoever waits for it must not wait on.
        self._ready.set()

    def wait_ready(self) -> None:
        """Returns when the process serves; raises with its log when it ended or took too long."""
        self._ready.wait(START_TIMEOUT_SECONDS)
        if not self.address:
            self.stop()
            raise RuntimeError(f"{self.name} did not get ready:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The end of what the process wrote."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> int:
        """Asks the process to stop, insists after a while, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        code = self.process.wait()
        self._reader.join(5)
        self._log_file.close()
        return code

    def kill(self) -> None:
        """Ends the process at once, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory_bytes(self) -> int:
        """The most memory that was resident at once."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


# For tests of what storage nodes do: the coordinator keeps no columns and no results that it could answer from instead.
NO_CACHES = ("--buffer-pool", "0", "--fragment-cache", "0")


class Cluster:
    """Storage nodes, six in three zones if nothing else is said, and a coordinator, on ports that the system picks."""

    def __init__(
        self,
        folder: pathlib.Path,
        nodes: int = 6,
        copies: int = 6,
        zones: int = 3,
        serve_arguments: tuple[str, ...] = (),
        url: str | None = None,
        env: dict[str, str] | None = None,
    ):
        self.folder = folder
        self.url = url or f"file://{folder / 'cluster'}"
        self.env = env
        self.zones = zones
        self.serve_arguments = serve_arguments
        self.nodes: list[Server] = []
        self.coordinator: Server | None = None
        try:
            self._start(nodes, copies)
        except BaseException:
            self.stop()
            raise

    def _start(self, nodes: int, copies: int) -> None:
        write = copies // 2 + 1
        quorum = ["--copies", copies, "--write-quorum", write, "--read-quorum", copies + 1 - write]
        self.run("cluster", "init", "--cluster", self.url, *map(str, quorum))
        for index in range(nodes):
            self.nodes.append(self.start_node(index))
        for node in self.nodes:
            node.wait_ready()
        self.start_coordinator()

    def start_node(self, index: int, *options: str) -> Server:
        """Starts the storage node of that index, at any port unless the options say otherwise; it may not be ready."""
        data = self.folder / f"node{index + 1}"
        arguments = ["--cluster", self.url, "--data", str(data), "--zone", f"az{index % self.zones + 1}"]
        listen = () if "--listen" in options else ("--listen", "127.0.0.1:0")
        return self._spawn(f"node{index + 1}", ["storage-node", *arguments, *listen, *options])

    def _spawn(self, name: str, arguments: list[str]) -> Server:
        return Server(name, self.command(arguments), self.folder / f"{name}.log", env=self.env)

    def command(self, arguments: list[str]) -> list[str]:
        """The command line of a process, for subclasses that run it elsewhere."""
        return [binary(), *arguments]

    @property
    def uri(self) -> str:
        """Where the Flight SQL service is."""
        return f"grpc://{self.coordinator.address}"

    def servers(self) -> list[Server]:
        """Every process of the cluster."""
        return self.nodes + ([self.coordinator] if self.coordinator else [])

    def start_coordinator(self) -> None:
        """Starts a coordinator; after a kill, it takes the place of the old one."""
        arguments = ["serve", "--cluster", self.url, "--listen", "127.0.0.1:0", *self.serve_arguments]
        self.coordinator = self._spawn("serve", arguments)
        self.coordinator.wait_ready()

    def restart_node(self, index: int) -> None:
        """Starts the storage node of that index again on its old data."""
        self.nodes[index] = self.start_node(index)
        self.nodes[index].wait_ready()

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Runs the binary to its end and returns what it wrote."""
        return run(*arguments, **({"env": self.env} | options))

    def status(self) -> dict:
        """What the coordinator says of the cluster."""
        from records import action, connect

        with connect(self.uri) as client:
            return action(client, "aubade.status")

    def cpu_seconds(self) -> float:
        """CPU time that all processes together have used so far."""
        return sum(server.cpu_seconds() for server in self.servers())

    def wait_idle(self, timeout: float = 20.0) -> bool:
        """Whether the processes stop using CPU before `timeout`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(1.0)
            if self.cpu_seconds() - before < 0.2:
                return True
        return False

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {server.name}\n{server.log_tail()}" for server in self.servers())

    def stop(self) -> list[int]:
        """Stops the coordinator first, then the nodes; returns the exit codes."""
        codes = [server.stop() for server in reversed(self.servers())]
        self.nodes, self.coordinator = [], None
        return codes

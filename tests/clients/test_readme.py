"""Every command and snippet of the README does what it says."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from cluster import Server, binary

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language):
    """The fenced blocks of one language, in their order."""
    return [text for found, text in BLOCK.findall(README) if found == language]


def commands(block):
    """The commands of a shell block, continuation lines joined, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


ALL_COMMANDS = [command for block in blocks("sh") for command in commands(block)]


class Shell:
    """Runs README commands with the built binary, in a folder of its own and on free ports."""

    def __init__(self, folder):
        self.folder = folder
        self.servers = []
        self.ports = {}

    def translate(self, command):
        """`command` with the built binary, the test's folder and its ports."""
        command = command.replace("cargo run --release --", "aubade").replace("/tmp/aubade", str(self.folder))
        for port, actual in self.ports.items():
            command = command.replace(port, actual)
        command = re.sub(r"--scale \S+", "--scale 0.01", command)
        if command.startswith("aubade demo") and "--scale" not in command:
            command += " --scale 0.01"
        arguments = shlex.split(command.rstrip("& "))
        assert arguments[0] == "aubade", f"the README has a command that this test cannot run: {command}"
        return [binary(), *arguments[1:]]

    def run(self, command):
        """Runs a command to its end, or in the background until it is ready if it ends in `&`."""
        if not command.rstrip().endswith("&"):
            done = subprocess.run(
                self.translate(command), capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, cwd=self.folder
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            return done.stdout
        (address,) = re.findall(r"--listen (\S+)", command)
        arguments = self.translate(command)
        arguments[arguments.index("--listen") + 1] = "127.0.0.1:0"
        name = f"server{len(self.servers)}"
        server = Server(name, arguments, self.folder / f"{name}.log", cwd=self.folder)
        self.servers.append(server)
        server.wait_ready()
        self.ports[address] = server.address
        return ""

    def stop(self):
        for server in reversed(self.servers):
            server.stop()


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


def test_the_two_commands_are_there():
    assert "cargo run --release -- demo" in ALL_COMMANDS
    assert "cargo test --release --workspace" in ALL_COMMANDS


def test_ci_runs_the_test_command():
    # With the lock file as it is committed; otherwise the same.
    assert "cargo test --release --workspace" in (ROOT / ".ci" / "run").read_text().replace(" --locked", "")


def test_the_client_tests_are_run_as_the_readme_says():
    assert "tests/clients/run.sh" in (ROOT / ".ci" / "run").read_text()


# Run by the person who builds, or by .ci/run itself.
BUILD = re.compile(r"^((AUBADE_\w+=\S+ )*cargo (test|build|install|bench)|git clone|cd|export|tests/clients/run\.sh|benches/peers/run\.sh)\b")


def test_every_command_of_the_readme_runs(shell):
    ran = []
    for command in ALL_COMMANDS:
        if BUILD.match(command):
            continue
        shell.run(command)
        ran.append(command)
    assert len(ran) >= 10
    for snippet in blocks("python"):
        for port, actual in shell.ports.items():
            snippet = snippet.replace(port, actual)
        done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"
        assert done.stdout.strip()


def test_servers_say_that_they_are_ready_as_the_readme_says(cluster):
    assert "`listening on grpc://127.0.0.1:PORT`" in README
    for server in cluster.servers():
        assert f"listening on grpc://{server.address}\n" in server.log_tail()

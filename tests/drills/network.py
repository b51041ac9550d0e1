"""Hosts on one machine: a network namespace each, joined by a bridge. Needs root and the `ip` command of iproute2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Seconds that killed processes may take to end.
_END = 30.0
# Sets the host's name and addresses, hides a folder behind an empty one, and starts a command.
_ENTER = """
hostname "$0" && mount --bind "$1" /etc/hosts || exit 1
if [ -n "$2" ]; then mount -t tmpfs none "$2" || exit 1; fi
shift 2 && exec "$@"
"""


def can_make_hosts() -> bool:
    """Return whether this process can make network namespaces."""
    if os.getuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    name = f"pvt_det_{os.getpid()}_probe"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    _ip("netns", "del", name)
    return True


class Host:
    """A host with a name, an address and processes of its own. The files are those of the machine.

    Args:
        name: Name of the host in its network.
        namespace: Name of its network namespace.
        hosts_file: File with the names and addresses of all hosts, its `/etc/hosts`.
    """

    def __init__(self, name: str, namespace: str, hosts_file: Path) -> None:
        self.name = name
        self.process: subprocess.Popen | None = None
        self._namespace = namespace
        self._hosts_file = hosts_file

    def start(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, hidden: Path | None = None
    ) -> None:
        """Start a program.

        Args:
            command: Words of the command.
            log: File that its output is added to.
            variables: Environment variables to set.
            hidden: Existing folder that is empty and separate on this host.
        """
        enter = ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "sh", "-c", _ENTER, self.name]
        words = [*enter, str(self._hosts_file), str(hidden or ""), *command]
        with log.open("a") as file:
            environment = os.environ | dict(variables or {})
            self.process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the host.

        Args:
            number: The signal.
        """
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill all processes of the host at once, as a power failure does, and wait for their end."""
        deadline = time.monotonic() + _END
        while self._processes():
            self.signal(signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: processes survive SIGKILL")
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait(_END)

    def _processes(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self._namespace).split()]


@contextmanager
def make_hosts(number: int, folder: Path) -> Iterator[list[Host]]:
    """Make hosts named host0, host1, … in one network. On exit, their processes are killed and they are removed.

    Args:
        number: Number of hosts, at most 200.
        folder: Existing folder for their `/etc/hosts`.
    """
    prefix = f"pvt_det_{os.getpid()}"
    switch, names = f"{prefix}_switch", [f"host{index}" for index in range(number)]
    hosts_file = folder / "hosts"
    lines = [f"10.200.0.{index + 1} {name}" for index, name in enumerate(names)]
    hosts_file.write_text("".join(f"{line}\n" for line in ["127.0.0.1 localhost", *lines]))
    hosts = [Host(name, f"{prefix}_{name}", hosts_file) for name in names]
    made: list[str] = []
    # Ends the drill as Ctrl-C does, so that the hosts are removed.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _add(switch, made)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for index, name in enumerate(names):
            own = f"{prefix}_{name}"
            _add(own, made)
            _ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
            _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
            _ip("-n", own, "address", "add", f"10.200.0.{index + 1}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", own, "link", "set", link, "up")
        yield hosts
    finally:
        for host in hosts[: max(0, len(made) - 1)]:
            host.signal(signal.SIGCONT)
            host.kill()
        for namespace in made:
            _ip("netns", "del", namespace)
        signal.signal(signal.SIGTERM, previous)


def _add(namespace: str, made: list[str]) -> None:
    _ip("netns", "add", namespace)
    made.append(namespace)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout

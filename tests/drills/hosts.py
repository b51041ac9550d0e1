"""Training over several hosts goes on after one was slow and one was killed, and ends as an undisturbed run does.

Each host is a network namespace with a name of its own. `torchrun` starts a process on each, with a c10d rendezvous on
the first one. A host that has ended is started again after some seconds, as a cluster does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pvt_det.checkpoint import CheckpointStore
from pvt_det.utils.text import counted
from tests.drills.network import Host, can_make_hosts, make_hosts
from tests.drills.outcome import Outcome, children
from tests.drills.resume import differences, saved_state
from tests.drills.tiny import shapes_keys, tiny_words

_ITERATIONS, _PERIOD = 24, 4
# Iterations of a brief drill, and after which of them a host is disturbed.
_BRIEF_ITERATIONS, _BRIEF_DISTURBED = 12, 4
# Seconds for which a host is stopped: more than the 15 after which torchrun's rendezvous counts it as dead.
_SLOW = 20.0
# Seconds until a host that has ended starts again, and that a run may take.
_REQUEUE, _TIMEOUT = 3.0, 900.0
_PORT = 29400
# With one store for all attempts, a host that replaces another one cannot join (torch 2.14).
_OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def run_hosts(
    folder: Path, config_file: str, count: int, *, seed: int = 0, number: int = 3, is_brief: bool = False
) -> Outcome:
    """Train with disturbed hosts, and compare the end with that of an undisturbed run.

    In each run, a host is stopped for 20 seconds, and later another one is disturbed, in one of four ways by turns:

    - all of its processes are killed,
    - the same for host0, on which the others depend,
    - its torchrun gets SIGTERM, as when a machine is taken away,
    - only its training process is killed, with one store for all attempts, which is torchrun's default.

    At last, runs with a host that has another output folder, other data or other code must be refused.

    Args:
        folder: Folder for the data, the runs and their logs.
        config_file: Config of the detector, of which a tiny version is used.
        count: Number of disturbed runs.
        seed: Seed of the choice of the hosts and of the times.
        number: Number of hosts.
        is_brief: Train for fewer iterations, stop no host for a time, and leave out the runs that must be refused.
    """
    outcome = Outcome("hosts")
    if not can_make_hosts():
        outcome.failures.append("network namespaces cannot be made: this drill needs root, `ip` and `unshare`")
        return outcome
    generator = random.Random(seed)
    with make_hosts(number, folder) as hosts:
        start = partial(_Run, folder, config_file, iterations=_BRIEF_ITERATIONS if is_brief else _ITERATIONS)
        whole = start("whole", hosts, _OWN_STORES)
        if failure := whole.finish():
            outcome.failures.append(f"undisturbed run: {failure}. See {whole.output}")
            return outcome
        outcome.facts["undisturbed"] = f"{whole.seconds:.0f} s"
        for attempt in range(count):
            way, disturb, is_first, variables = _WAYS[attempt % len(_WAYS)]
            run = start(f"run{attempt}", hosts, variables)
            victim = hosts[0 if is_first else generator.randrange(1, number)]
            slow = generator.choice([host for host in hosts if host is not victim])
            first, second = generator.randrange(4, 9), generator.randrange(12, 21)
            slowed = f"{slow.name} stopped for {_SLOW:.0f} s after iteration {first}, "
            disturbances = {first: partial(_slow_down, slow), second: partial(disturb, victim)}
            if is_brief:
                slowed, second, disturbances = "", _BRIEF_DISTURBED, {_BRIEF_DISTURBED: partial(disturb, victim)}
            failure = run.finish(disturbances)
            if not failure and (different := list(differences(saved_state(whole.output), saved_state(run.output)))):
                failure = f"{len(different)} values differ, such as {different[0]}"
            outcome.tried += 1
            outcome.facts[f"run {attempt}"] = (
                f"{slowed}{victim.name} {way} after {second}; "
                f"{run.seconds:.0f} s, {counted(run.started_again, 'host')} started again"
            )
            if failure:
                outcome.failures.append(f"run {attempt}: {failure}. See {run.output}")
        if not is_brief:
            _try_refusals(outcome, folder, config_file, hosts)
    return outcome


class _Run:
    """One training run over all hosts.

    Attributes:
        output: The run folder.
        seconds: How long the run took.
        started_again: How many times a host was started again.
    """

    def __init__(
        self,
        folder: Path,
        config_file: str,
        name: str,
        hosts: Sequence[Host],
        variables: Mapping[str, str],
        *,
        iterations: int = _ITERATIONS,
        restarts: int = 3,
    ) -> None:
        self.output = folder / name
        self.output.mkdir()
        self.seconds = 0.0
        self.started_again = 0
        self.hosts = hosts
        self.iterations = iterations
        self.variables = {"OMP_NUM_THREADS": "1", **variables}
        settings = {
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.CHECKPOINT_PERIOD": _PERIOD,
            "SOLVER.IMS_PER_BATCH": 2 * len(hosts),
            "SEED": 1,
        }
        torchrun = ["-m", "torch.distributed.run", "--nnodes", str(len(hosts)), "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].name}:{_PORT}", "--rdzv-id", name]
        torchrun += ["--max-restarts", str(restarts)]
        words = ["--resume", "--config-file", config_file, *tiny_words(folder, self.output, settings)]
        self.command = [sys.executable, *torchrun, "tools/train_net.py", *words]

    def start(
        self, host: Host, *, changes: Sequence[str] = (), code: Path | None = None, hidden: Path | None = None
    ) -> None:
        """Start the run on a host.

        Args:
            host: The host.
            changes: Config keys and values, alternating.
            code: Folder with the package. None takes the current one.
            hidden: Folder that is not shared with the other hosts.
        """
        variables = self.variables | {"PYTHONPATH": str(code or Path.cwd())}
        host.start([*self.command, *changes], self.log(host), variables, hidden)

    def log(self, host: Host) -> Path:
        """Return the file with the output of a host."""
        return self.output.with_name(f"{self.output.name}_{host.name}.log")

    def finish(self, disturbances: dict[int, Callable[[], None]] | None = None) -> str:
        """Train to the end. Each disturbance happens once the given iteration is saved.

        Returns:
            What went wrong, or "".
        """
        begin, waiting = time.monotonic(), dict(disturbances or {})
        for host in self.hosts:
            self.start(host)
        ended: dict[str, float] = {}
        while True:
            now = time.monotonic()
            self.seconds = now - begin
            if self.seconds > _TIMEOUT:
                self.kill()
                return f"still running after {_TIMEOUT:.0f} s"
            if all(_code(host) == 0 for host in self.hosts):
                return f"{len(waiting)} disturbances did not happen" if waiting else self._check()
            for iteration in [iteration for iteration in waiting if self._saved() >= iteration]:
                waiting.pop(iteration)()
            for host in self.hosts:
                if not _code(host):
                    continue
                if now - ended.setdefault(host.name, now) > _REQUEUE:
                    del ended[host.name]
                    self.started_again += 1
                    self.start(host)
            time.sleep(0.1)

    def refusal(self, expected: str) -> str:
        """Wait until all hosts have ended with an error. Call it after `start`.

        Args:
            expected: What every host's error must contain.

        Returns:
            What went wrong, or "".
        """
        deadline = time.monotonic() + _TIMEOUT
        while any(_code(host) is None for host in self.hosts):
            if time.monotonic() > deadline:
                self.kill()
                return f"still running after {_TIMEOUT:.0f} s"
            time.sleep(0.1)
        silent = [host.name for host in self.hosts if expected not in self.log(host).read_text()]
        if silent or any(_code(host) == 0 for host in self.hosts):
            return f"not refused with {expected!r} on {', '.join(silent) or 'all hosts'}"
        return "trained" if list(self.output.glob("model_*.pth")) else ""

    def _saved(self) -> int:
        """Return the number of iterations in the last checkpoint."""
        try:
            name = (self.output / "last_checkpoint").read_text().strip()
            return int(Path(name).stem.removeprefix("model_")) + 1
        except (OSError, ValueError):
            return 0

    def _check(self) -> str:
        store = CheckpointStore(self.output)
        last = store.latest()
        iteration = -1 if last is None else store.load(last)["iteration"]
        return "" if iteration == self.iterations - 1 else f"ended after iteration {iteration}"

    def kill(self) -> None:
        """Kill all hosts."""
        for host in self.hosts:
            host.signal(signal.SIGCONT)
            host.kill()


def _code(host: Host) -> int | None:
    return host.process.poll() if host.process else None


def _kill_training(host: Host) -> None:
    """Kill the process that trains, and not the torchrun that started it."""
    assert host.process is not None
    os.kill(children(host.process.pid)[0], signal.SIGKILL)


def _terminate(host: Host) -> None:
    """Ask torchrun to end, as when a machine is taken away."""
    assert host.process is not None
    host.process.terminate()


def _slow_down(host: Host) -> None:
    host.signal(signal.SIGSTOP)
    time.sleep(_SLOW)
    host.signal(signal.SIGCONT)


def _try_refusals(outcome: Outcome, folder: Path, config_file: str, hosts: Sequence[Host]) -> None:
    """Start runs whose last host differs from the others, which must end before they train."""
    annotations = shapes_keys(folder, "TRAIN")["DATASETS.TRAIN_JSON"]
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][0] += 1
    other_data = folder / "other_data.json"
    other_data.write_text(json.dumps(content))
    other_code = folder / "other_code"
    shutil.copytree(Path("pvt_det"), other_code / "pvt_det", ignore=shutil.ignore_patterns("__pycache__"))
    (other_code / "pvt_det/errors.py").open("a").write("# another version\n")
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "folder": ("The output folder is not shared: rank", {"hidden": folder / "folder"}),
        "data": ("differ: training data: annotations is", {"changes": ["DATASETS.TRAIN_JSON", str(other_data)]}),
        "code": ("differ: code version is", {"code": other_code}),
    }
    for name, (expected, differs) in cases.items():
        run = _Run(folder, config_file, name, hosts, _OWN_STORES, restarts=0)
        for host in hosts:
            run.start(host, **(differs if host is hosts[-1] else {}))
        outcome.tried += 1
        if failure := run.refusal(expected):
            outcome.failures.append(f"other {name}: {failure}. See {run.log(hosts[0])}")
    outcome.facts["refused before training"] = f"a host with another {', '.join(cases)}"


# What is done to a host, the function, whether it is done to host0, and the environment variables of the run.
_WAYS: tuple[tuple[str, Callable[[Host], None], bool, Mapping[str, str]], ...] = (
    ("killed", Host.kill, False, _OWN_STORES),
    ("killed", Host.kill, True, _OWN_STORES),
    ("terminated", _terminate, False, _OWN_STORES),
    ("without its training process", _kill_training, False, {}),
)

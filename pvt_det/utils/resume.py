"""The command that resumes a run, for messages."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.utils.torchrun import group_rank_and_size, local_world_size, under_torchrun

__all__ = ["resume_command"]

# The program that pip installs, a file whose first line names the interpreter.
_PROGRAM = "pvt-det"


def resume_command(resumed: bool, words: Sequence[str] | None = None, program: Sequence[str] = ()) -> str:
    """Return the command that resumes the run of this process, to be used in the same folder.

    Args:
        resumed: Whether the run was started with `--resume`, which is then not added again.
        words: Arguments of the program. None takes those of this process.
        program: The words before the arguments. If empty, those with which the user started this process.

    Returns:
        The command, quoted for a shell.
    """
    start = program or program_words()
    given = sys.argv[1:] if words is None else words
    # First, where it cannot be taken for a value.
    return shlex.join([*start, *([] if resumed else ["--resume"]), *given])


def program_words() -> list[str]:
    """Return the words with which the user started this process, without the arguments of the program.

    Examples are `pvt-det`, `.venv/bin/python tools/train_net.py` and `torchrun --nproc-per-node 2 tools/train_net.py`.

    Returns:
        The words. If `torchrun` started the program on several machines, its options, which differ between them, are
        the word "OPTIONS".
    """
    before = len(sys.orig_argv) - len(sys.argv) + 1
    typed = sys.orig_argv[:before] if sys.orig_argv[before:] == sys.argv[1:] else ["python", sys.argv[0]]
    script = Path(typed[-1])
    if script.name == _PROGRAM:
        is_on_path = shutil.which(_PROGRAM) == str(script.absolute())
        program, options = [_PROGRAM if is_on_path else str(script)], ["--no-python"]
    else:
        program, options = typed, []
    if not under_torchrun():
        return program
    launcher = ["torchrun"] if shutil.which("torchrun") else [sys.executable, "-m", "torch.distributed.run"]
    processes = local_world_size()
    is_single = group_rank_and_size()[1] == processes
    # Without the interpreter and its option -u, which torchrun adds.
    script_words = program if options else [word for word in typed[1:] if word != "-u"]
    return [*launcher, *(["--nproc-per-node", str(processes)] if is_single else ["OPTIONS"]), *options, *script_words]

"""What every script in `tools/` shares: one-line errors, documented exit codes, options that suggest a spelling."""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pvt_det.errors import ConfigError, Interrupted, PvtDetError
from pvt_det.utils.text import closest

# What a shell reports for a program that Ctrl-C ended.
EXIT_CTRL_C = 130
# What the system refuses because of where a user wants something read or written.
_NOT_OURS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    }
)


def run_cli(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and turn a user's error into one line on stderr and its exit code.

    Exit codes: 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable, 130 stopped by Ctrl-C at
    once. A folder that cannot be written, or a disk that is full, is a user's error too, with exit code 2.
    Any other exception is our own mistake and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name of a file need not be Unicode, nor a terminal able to show it.
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except PvtDetError as error:
        kind = "stopped" if isinstance(error, Interrupted) else "error"
        print(f"{kind}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}. Free some room, or name another file or folder.", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("stopped: by Ctrl-C, at once; what was saved before is whole.", file=sys.stderr, flush=True)
        return EXIT_CTRL_C


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are `ConfigError`s that suggest the option which was meant."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`, where argparse would print its usage and exit."""
        words = message.removeprefix("unrecognized arguments: ").split()
        guesses = [match for word in words if word.startswith("-") for match in self._near(word)]
        hint = f" Did you mean {' or '.join(guesses)}?" if guesses else ""
        raise ConfigError(f"{self.prog}: {message.rstrip('.')}.{hint} See {self.prog} --help.")

    def _near(self, word: str) -> list[str]:
        name = word.split("=")[0].rstrip(",:")
        known = self._option_string_actions
        # One that is spelled right is told of for another reason.
        return [] if name in known else closest(name, known)

    def parse_words(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse `argv` (None: the program's own), options and positional words in any order."""
        return self.parse_intermixed_args(argv)

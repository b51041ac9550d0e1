"""Shared by all command-line scripts: one-line errors, exit codes and spelling suggestions."""

from __future__ import annotations

import argparse
import errno
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn, TextIO, cast

from pvt_det.errors import ConfigError, Interrupted, PvtDetError
from pvt_det.utils.text import closest, printable

__all__ = ["run_cli"]

# Exit code that a shell reports for a program that was stopped by Ctrl-C.
EXIT_CTRL_C = 130
# Beginning of an override that is given as one word, KEY=VALUE.
ASSIGNMENT = re.compile(r"[A-Za-z][\w.]*=")
# Errors of the operating system that are caused by the file or folder that the user chose.
_USER_ERRNOS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    }
)


def run_cli(main: Callable[[], int | None]) -> int:
    """Run a script's `main`, and report user errors as one line on stderr and an exit code.

    Exit codes: 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable, 130 stopped immediately by
    Ctrl-C. A folder that is not writable and a full disk also count as user errors, with exit code 2. Any other
    exception is a bug and keeps its traceback.

    Everything printed is made safe for terminals by `pvt_det.utils.text.printable`.

    Args:
        main: The function to run. It returns an exit code, or None for 0.

    Returns:
        The exit code of the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may not be valid Unicode, and terminals may not support all characters.
            stream.reconfigure(errors="backslashreplace")
    with redirect_stdout(_printable_stream(sys.stdout)), redirect_stderr(_printable_stream(sys.stderr)):
        return _run(main)


def _run(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except PvtDetError as error:
        kind = "stopped" if isinstance(error, Interrupted) else "error"
        print(f"{kind}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}. Free some space, or choose another file or folder.", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("stopped: by Ctrl-C, immediately. Files saved earlier are intact.", file=sys.stderr, flush=True)
        return EXIT_CTRL_C


class _PrintableStream:
    """Text stream that makes everything written to it safe for terminals.

    Rich writes to `rich_proxied_file` instead, because its colors are escape sequences. See `pvt_det.utils.console`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def _printable_stream(stream: TextIO) -> TextIO:
    return cast(TextIO, _PrintableStream(stream))


def add_public_key(parser: argparse.ArgumentParser, signed: str = "the folder") -> None:
    """Add `--public-key`, with which a command verifies the folder that it reads config and weights from.

    Args:
        parser: Parser to add the option to.
        signed: What is verified, for the help.
    """
    parser.add_argument(
        "--public-key", default="", metavar="FILE", help=f"verify the signature of {signed} with this public key (PEM)"
    )


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` and suggests the option that was probably meant."""

    _words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`, whereas argparse prints its usage and exits.

        Args:
            message: What argparse found wrong.

        Raises:
            ConfigError: Always.
        """
        if "required" in message and (unknown := [word for word in self._words if self._is_unknown(word)]):
            # A misspelled option is reported before the one that is missing because of it.
            message = f"unrecognized arguments: {' '.join(unknown)}"
        words = message.removeprefix("unrecognized arguments: ").split()
        guesses = [match for word in words if word.startswith("-") for match in self._near(word)]
        hint = f" Did you mean {' or '.join(guesses)}?" if guesses else ""
        raise ConfigError(f"{self.prog}: {message.rstrip('.')}.{hint} See {self.prog} --help.")

    def _near(self, word: str) -> list[str]:
        name = word.split("=")[0].rstrip(",:")
        known = self._option_string_actions
        # An option that is spelled correctly was refused for another reason.
        return [] if name in known else closest(name, known)

    def _is_unknown(self, word: str) -> bool:
        name = word.split("=")[0]
        is_option = name.startswith("--") and name != "--" and " " not in name
        return is_option and not any(option.startswith(name) for option in self._option_string_actions)

    def parse_words(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse options and positional arguments in any order.

        Args:
            argv: The arguments, without the program's name. If None, those of the current process.

        Returns:
            The parsed arguments.
        """
        self._words = sys.argv[1:] if argv is None else argv
        return self.parse_intermixed_args(self._words)


def split_assignments(words: Sequence[Any]) -> list[Any]:
    """Split overrides in the form `KEY=VALUE` into a key and a value.

    Args:
        words: Overrides, each as `KEY VALUE` or as `KEY=VALUE`.

    Returns:
        Keys and values, alternating. A key without a value stays at the end.
    """
    pairs: list[Any] = []
    for word in words:
        is_key = len(pairs) % 2 == 0
        pairs += str(word).split("=", 1) if is_key and ASSIGNMENT.match(str(word)) else [word]
    return pairs

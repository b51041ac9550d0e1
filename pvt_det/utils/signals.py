"""Handle Ctrl-C, SIGTERM and a closed terminal as requests to stop training after the current step."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pvt_det.errors import Interrupted
from pvt_det.utils.progress import show_notice
from pvt_det.utils.torchrun import under_torchrun

# Seconds within which two signals are one press of Ctrl-C. Launchers such as torchrun forward it to processes that
# already got it from the terminal.
_SAME_PRESS, _SAME_PRESS_TORCHRUN = 0.3, 2.0


# Windows has no SIGHUP.
_HANGUP = getattr(signal, "SIGHUP", None)
_REQUESTS = [number for number in (signal.SIGINT, signal.SIGTERM, _HANGUP) if number is not None]


class StopRequest:
    """Context manager in which the first SIGINT, SIGTERM or SIGHUP only sets `signal_name`.

    The first Ctrl-C is acknowledged at once. A second one raises `KeyboardInterrupt`. In a thread other than the main
    one, which Python does not let handle signals, it does nothing.

    Args:
        stops_after: What is finished first, such as "iteration", for the line that acknowledges a Ctrl-C. "" shows no
            line.

    Attributes:
        signal_name: "SIGINT", "SIGTERM" or "SIGHUP", or None before the first signal.
    """

    def __init__(self, stops_after: str = "") -> None:
        self._stops_after = stops_after
        self.signal_name: str | None = None
        self._requested_at = 0.0
        self._same_press = _SAME_PRESS_TORCHRUN if under_torchrun() else _SAME_PRESS
        self._previous: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> StopRequest:
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        self._previous = {}
        if not _can_handle_signals():
            return self
        for number in _REQUESTS:
            # Under `nohup`, SIGHUP stays ignored.
            if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:
            _discard(self._terminals)
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._requested_at = signal.Signals(number).name, now
            if number == signal.SIGINT and self._stops_after:
                show_notice(f"Saving after this {self._stops_after}; press Ctrl-C again to stop now.")
        elif number == signal.SIGINT and now - self._requested_at > self._same_press:
            raise KeyboardInterrupt


def _can_handle_signals() -> bool:
    """Return whether this thread may set signal handlers. Only the main thread may."""
    return threading.current_thread() is threading.main_thread()


def _discard(streams: list[int]) -> None:
    """Discard output to a closed terminal: writing there raises, possibly before everything is saved."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(devnull, stream)
    os.close(devnull)


class _Terminated(KeyboardInterrupt):
    """Raised on SIGTERM. Not an `Exception`, so that error handlers do not catch it."""


@contextmanager
def termination_reported(resume_command: str) -> Iterator[None]:
    """Context manager in which SIGTERM raises an error that says how to resume.

    While a `StopRequest` is active inside it, SIGTERM is handled by that instead.

    Args:
        resume_command: The command that resumes the run. If empty, the error does not mention one.

    Raises:
        Interrupted: The process received SIGTERM.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if not _can_handle_signals():
        yield
        return
    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    except _Terminated:
        hint = f" Resume with: {resume_command}" if resume_command else ""
        raise Interrupted(f"by SIGTERM, before there was anything new to save.{hint}") from None
    finally:
        signal.signal(signal.SIGTERM, previous)

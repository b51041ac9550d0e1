"""Ctrl-C, SIGTERM and a closed terminal as a wish to stop that the training loop grants after the step it is in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pvt_det.errors import Interrupted

# Launchers such as torchrun pass a Ctrl-C on to processes that have got it from the terminal already.
_SAME_CTRL_C = 2.0


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets `signal_name`; Ctrl-C seconds later interrupts at once.

    Attributes:
        signal_name: "SIGINT", "SIGTERM", "SIGHUP" or, before any came, None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._asked_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> StopRequest:
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under `nohup`, a terminal may close.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _silence(self._terminals)
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._asked_at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._asked_at > _SAME_CTRL_C:
            raise KeyboardInterrupt


def _silence(streams: list[int]) -> None:
    """Send to nowhere what would go to a closed terminal: writing there raises, perhaps before all is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)


class _Terminated(KeyboardInterrupt):
    """SIGTERM; like Ctrl-C no `Exception`, so that nothing takes it for a fault of what it met."""


@contextmanager
def termination_reported(go_on: str) -> Iterator[None]:
    """While entered, SIGTERM ends the program with an error that says how to go on, where no `StopRequest` is entered.

    Args:
        go_on: The command that goes on; "" leaves it out.

    Raises:
        Interrupted: SIGTERM came.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    except _Terminated:
        way_on = f" Go on with: {go_on}" if go_on else ""
        raise Interrupted(f"by SIGTERM, before there was anything new to save.{way_on}") from None
    finally:
        signal.signal(signal.SIGTERM, previous)

"""Drive headless Chromium through its DevTools pipe, with the standard library only."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECONDS = 90.0  # for slow machines; nothing waits longer than needed
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-extensions --window-size=1300,900 --remote-debugging-pipe"
)


def find_chromium() -> str | None:
    """Return the program of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Page:
    """A tab of the browser.

    Attributes:
        events: Everything that the browser has reported so far.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._reader], [], [], _SECONDS)[0], "Chromium does not answer"
            part = os.read(self._reader, 2**16)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of its promise."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of a JavaScript expression as soon as it is neither false nor empty."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} stays {value!r}"
            time.sleep(0.1)
        return value

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file in an input of the page."""
        self.wait(f"!!document.querySelector({selector!r})")
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key: str) -> None:
        """Press a key, such as "End"."""
        codes = {"End": 35, "Home": 36}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


@contextmanager
def open_page(program: str, url: str, folder: Path) -> Iterator[Page]:
    """Context manager with a browser that shows a page; downloads are saved to `folder`."""
    to_browser, from_browser = os.pipe(), os.pipe()
    ends = (to_browser[0], from_browser[1])
    command = f'exec "{program}" {_OPTIONS} "--user-data-dir={folder / "profile"}" 3<&{ends[0]} 4>&{ends[1]}'
    browser = subprocess.Popen(["bash", "-c", command], pass_fds=ends, stderr=subprocess.DEVNULL)
    for end in ends:
        os.close(end)
    try:
        page = Page(from_browser[0], to_browser[1])
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        page.send("Page.navigate", url=url)
        yield page
    finally:
        browser.terminate()
        browser.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])

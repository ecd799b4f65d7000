"""A headless Chromium, driven through a pipe: what a page asks for, complains of, and how wide it is."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
_DOMAINS = ("Page", "Network", "Runtime", "Log")
_IN, _OUT = 3, 4
"""The descriptors that Chromium's ``--remote-debugging-pipe`` reads from and writes to."""


@dataclass(frozen=True)
class Shown:
    """What a browser made of a page.

    Attributes:
        requests: Addresses that it asked for, without the page itself and what it holds as ``data:``.
        complaints: Errors and other lines on the console.
        width: Width of what can be scrolled to, in pixels.
        height: Its height.
        image: A PNG of the whole page.
    """

    requests: list[str]
    complaints: list[str]
    width: int
    height: int
    image: bytes


class Browser:
    """One browser with one tab."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers = to, answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in _DOMAINS:
            self._call(f"{domain}.enable")

    def show(self, page: Path, *, width: int, dark: bool = False) -> Shown:
        """Open a file on a screen of a width in pixels."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        for url in ("about:blank", page.as_uri()):  # what is late of the page before is not this one's
            self._open(url)
        element = "document.scrollingElement"
        across, down = (self._evaluate(f"{element}.{side}") for side in ("scrollWidth", "scrollHeight"))
        image = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        return Shown(
            requests=list(self._requests(page)),
            complaints=list(self._complaints()),
            width=across,
            height=down,
            image=base64.b64decode(image),
        )

    def _open(self, url: str) -> None:
        self._events.clear()
        self._call("Page.navigate", url=url)
        while not self._named("Page.loadEventFired"):
            self._events.append(self._receive())

    def _requests(self, page: Path) -> Iterator[str]:
        for each in self._named("Network.requestWillBeSent"):
            url = each["request"]["url"]
            if url != page.as_uri() and not url.startswith("data:"):
                yield url

    def _complaints(self) -> Iterator[str]:
        yield from (each["entry"]["text"] for each in self._named("Log.entryAdded"))
        yield from (each["exceptionDetails"]["text"] for each in self._named("Runtime.exceptionThrown"))
        yield from (json.dumps(each["args"]) for each in self._named("Runtime.consoleAPICalled"))

    def _named(self, method: str) -> list[dict[str, Any]]:
        return [each["params"] for each in self._events if each["method"] == method]

    def _evaluate(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def running(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it ends with the context."""
    assert PROGRAM
    reads, to = os.pipe()
    answers, writes = os.pipe()

    def put_in_place() -> None:
        above = [fcntl.fcntl(each, fcntl.F_DUPFD, _OUT + 1) for each in (reads, writes)]
        for each, wanted in zip(above, (_IN, _OUT), strict=True):
            os.dup2(each, wanted)

    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars")
    process = subprocess.Popen(
        [PROGRAM, *options, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=put_in_place,  # the pipes must have these numbers
    )
    try:
        os.close(reads)
        os.close(writes)
        yield Browser(to, answers)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(answers)

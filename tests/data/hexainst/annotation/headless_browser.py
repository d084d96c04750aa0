"""A headless browser for tests, driven like a person: keys, clicks, saved and loaded files.

Commands go over two pipes (DevTools protocol, zero-terminated messages); the page itself has no test hooks.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe --window-size=1280,900"
)
# The browser reads descriptor 3 and writes descriptor 4: a launcher process moves the pipes there, then execs it.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for wanted, end in zip((3, 4), ends):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # seconds; only failures take this long


class RefusedError(Exception):
    """The browser failed to execute a command."""


class Browser:
    """A headless browser and its pages."""

    def __init__(self, folder: Path) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        command = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(to_browser[0]), str(from_browser[1]), *command],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._write, self._read = to_browser[1], from_browser[0]
        self._buffer, self._number = b"", 0
        self.dialogs: list[str] = []
        self.requests: list[str] = []

    def close(self) -> None:
        """Stop the browser."""
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._write)
            os.close(self._read)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; record events meanwhile."""
        number = self._send(method, session, parameters)
        while True:
            message = self._receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RefusedError(method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _send(self, method: str, session: str | None, parameters: dict[str, Any]) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 16)
            assert data, "the browser exited"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Page.javascriptDialogOpening":
            self.dialogs.append(message["params"]["message"])
            self._send("Page.handleJavaScriptDialog", message["sessionId"], {"accept": True})
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])

    def open(self, page: Path, *, beside: Page | None = None) -> Page:
        """Open the page in a new tab, in a fresh profile or beside another tab; downloads go to the page's folder."""
        context = beside.context if beside else self.call("Target.createBrowserContext")["browserContextId"]
        where = {"browserContextId": context}
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(page.parent), **where)
        target = self.call("Target.createTarget", url="about:blank", **where)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Page(self, session, page.parent, context)
        for domain in ("Page", "Runtime", "Network", "DOM"):
            tab.call(f"{domain}.enable")
        tab.go(page)
        return tab


class Page:
    """A tab, with what a person can do in it and see."""

    def __init__(self, browser: Browser, session: str, downloads: Path, context: str) -> None:
        self._browser, self._session, self._downloads, self.context = browser, session, downloads, context

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def go(self, page: Path) -> None:
        """Open the file and wait until its scripts have run."""
        self.call("Page.navigate", url=page.as_uri())
        wait_until(lambda: self._ready("location.protocol === 'file:'"))

    def reload(self) -> None:
        """Reload the page and wait until the new one has loaded."""
        self.see("window.before = true")
        self.call("Page.reload")
        wait_until(lambda: self._ready("!window.before"))

    def _ready(self, condition: str) -> bool:
        """Return whether a page is loaded and fulfils this; between two pages, there is none to ask."""
        try:
            return bool(self.see(f"document.readyState === 'complete' && {condition}"))
        except RefusedError:
            return False

    def see(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the visible text of an element, "" if it is hidden or missing."""
        return str(self.see(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        box = self.see(
            f"(() => {{ const node = document.querySelector({selector!r}); node.scrollIntoView({{block: 'center'}});"
            "const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Tab": 9}.get(key, ord(key[0]))
        facts = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Type text into the focused element."""
        self.call("Input.insertText", text=text)

    def give(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def saved(self, name: str) -> Path:
        """Return the file that the page saved under this name."""
        path = self._downloads / name
        wait_until(lambda: path.exists() and path.stat().st_size > 0 and not list(self._downloads.glob("*.crdownload")))
        return path

    def begin(self, name: str) -> None:
        """Enter the annotator's name and start."""
        self.click("#annotator")
        self.type(name)
        self.key("Enter")
        wait_until(lambda: self.text("#name") == name)


def wait_until(condition: Callable[[], Any]) -> None:
    """Return once a condition holds; fail if it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)

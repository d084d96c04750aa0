"""The form in a real browser, driven as a person would: keys, clicks, a file saved and one loaded.

The browser is spoken to over two pipes (DevTools protocol, messages that end in a zero byte); the page has no hooks.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparcom_hexainst.agreement.disputes import make_adjudication
from sparcom_hexainst.annotation.make import DataSet, make_form, read_data
from sparcom_hexainst.annotation.page import page_json, render_page
from sparcom_hexainst.annotation.read import read_answers
from sparcom_hexainst.annotation.schema import Form
from sparcom_hexainst.annotation.testing import filled

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe --window-size=1280,900"
)
# The browser listens on descriptor 3 and answers on 4: moved there by a process that then becomes the browser.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for wanted, end in zip((3, 4), ends):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0  # seconds; only a failure takes as long
EVIL = '</script><img src=x onerror="document.title=1"><!-- <script>document.title=2</script> \u2028 {{ 7*7 }}'
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


class RefusedError(Exception):
    """The browser could not do what it was told."""


class Browser:
    """One headless browser and its pages."""

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
        """End the browser."""
        try:
            self.call("Browser.close")
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._write)
            os.close(self._read)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result; what happens meanwhile is noted."""
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
            assert data, "the browser ended"
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
        """A new tab with the page, in a fresh profile or beside another tab; downloads go to the page's folder."""
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
    """One tab: what a person can do to it, and what they see."""

    def __init__(self, browser: Browser, session: str, downloads: Path, context: str) -> None:
        self._browser, self._session, self._downloads, self.context = browser, session, downloads, context

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self._browser.call(method, self._session, **parameters)

    def go(self, page: Path) -> None:
        """Open the file, and wait until its scripts have run."""
        self.call("Page.navigate", url=page.as_uri())
        wait_until(lambda: self._ready("location.protocol === 'file:'"))

    def reload(self) -> None:
        """Load the page again, and wait until it is another."""
        self.see("window.before = true")
        self.call("Page.reload")
        wait_until(lambda: self._ready("!window.before"))

    def _ready(self, condition: str) -> bool:
        """Whether a page is there for which this holds; between two pages there is none to ask."""
        try:
            return bool(self.see(f"document.readyState === 'complete' && {condition}"))
        except RefusedError:
            return False

    def see(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self, selector: str) -> str:
        """The visible text of an element, "" where it is hidden or missing."""
        return str(self.see(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
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
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def give(self, selector: str, path: Path) -> None:
        """Choose a file in an input for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def saved(self, name: str) -> Path:
        """The file that the page saved under this name."""
        path = self._downloads / name
        wait_until(lambda: path.exists() and path.stat().st_size > 0 and not list(self._downloads.glob("*.crdownload")))
        return path

    def begin(self, name: str) -> None:
        """Give the annotator's name and start."""
        self.click("#annotator")
        self.type(name)
        self.key("Enter")
        wait_until(lambda: self.text("#name") == name)


def wait_until(condition: Callable[[], Any]) -> None:
    """Return when a condition holds; a browser that never gets there is a failure."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the page never got there"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    path = tmp_path / "i.jsonl"
    lines: list[dict[str, object]] = [
        {"id": "cls-1", "category": "CLS", "source": "secret-source", "text": EVIL},
        {"id": "qa-1", "category": "QA", "text": "Name the capital of Peru."},
        {
            "id": "__proto__",
            "category": "QA",
            "messages": [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "Why?"}],
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_data([path])


def write(form: Form, folder: Path) -> Path:
    path = folder / "form.html"
    path.write_text(render_page(form), encoding="utf-8")
    return path


def test_a_form_is_filled_by_keys_saved_resumed_and_read(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """The way of an annotator: name, numbers and Enter, a reload, a partial file, what is missing, a complete file."""
    form = make_form(data, seed=3)
    tab = browser.open(write(form, tmp_path))
    tab.begin("Ada Ünver")
    assert tab.text("#place") == "1 of 3"
    for key in "1132":  # correct, none, none of these, unclear
        tab.key(key)
    tab.key("Enter")
    assert tab.text("#place") == "2 of 3"
    assert tab.text("#answered") == "1 answered"
    for key in ("2", "Enter", "2", "1"):  # Enter leads to the question that is open, and changes no answer
        tab.key(key)
    tab.click("#comment")
    tab.type("=1+1 is odd")
    tab.reload()
    wait_until(lambda: tab.text("#place") == "2 of 3")
    assert tab.text("#name") == "Ada Ünver"
    assert tab.see("document.querySelector('#comment').value") == "=1+1 is odd"
    tab.click("#finish")
    assert "2 items lack an answer" in tab.text("#status")
    assert tab.text("#missing").split("\n") == ["item 2: clarity", "item 3: grammar, redundancy, category, clarity"]
    tab.click("#save")
    partial = tab.saved("annotation-Ada-Ünver-partial.json")
    assert not json.loads(partial.read_text())["complete"]
    tab.click("#missing button")
    tab.key("1")
    tab.key("Enter")
    for key in "1121":
        tab.key(key)
    tab.key("Enter")
    tab.key("Enter")  # on the button that has the focus after the last item
    found = read_answers(tab.saved("annotation-Ada-Ünver.json"), "annotation")
    given = [tuple(item.answers.values()) for item in found.items]
    assert given == [
        ("correct", "none", "none of these", "unclear"),
        ("faulty", "padded", "CLS", "clear"),
        ("correct", "none", "QA", "clear"),
    ]
    assert [item.comment for item in found.items] == ["", "=1+1 is odd", ""]
    assert [(item.id, item.sha256) for item in found.items] == [(item.id, item.sha256) for item in form.items]
    assert found.started is not None
    assert found.saved is not None
    assert (found.annotator, found.complete, found.form) == ("Ada Ünver", True, form.sha256)


def test_a_saved_file_is_loaded_elsewhere(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """A file brings answers and name into a browser that has none; another form's and a broken one are refused."""
    form = make_form(data)
    tab = browser.open(write(form, tmp_path))
    file = filled(form, "Grace").model_dump(mode="json")
    bad = tmp_path / "bad.json"
    for change, said in [
        ({"form": "0" * 64}, "belongs to another form"),
        ({"items": file["items"][1:]}, "is missing in this file"),
        ({"items": [file["items"][0] | {"answers": {"grammar": "fine"}}, *file["items"][1:]]}, "fine is no answer"),
        ({"version": 2}, "another version"),
    ]:
        bad.write_text(json.dumps(file | change))
        tab.give("#load-start", bad)
        wait_until(lambda said=said: said in tab.text("#start-status"))
    good = tmp_path / "good.json"
    good.write_text(json.dumps(file))
    tab.give("#load-start", good)
    wait_until(lambda: tab.text("#name") == "Grace")
    assert tab.text("#answered") == "3 answered"
    tab.click("[name=clarity][value=unclear]")
    tab.give("#load", good)  # what would be lost is asked about
    wait_until(lambda: tab.see("document.querySelector('[name=clarity][value=clear]').checked"))
    assert browser.dialogs == ["One item differs from what this browser keeps for Grace. Replace it by the file?"]


def test_what_an_instruction_says_stays_text(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """Markup in an instruction is shown and never run; nothing is fetched; category, source and ids are not shown."""
    form = make_form(data)
    browser.requests.clear()
    tab = browser.open(write(form, tmp_path))
    tab.begin("Eve")
    shown = []
    for _ in form.items:
        shown.append(tab.text("#item"))
        tab.click("#next")
    assert EVIL.replace("\u2028", "") in "".join(shown).replace("\u2028", "").replace("\n", "")
    assert any(text.split("\n\n") == ["System", "Be <b>brief</b>.", "User", "Why?"] for text in shown), shown
    assert tab.see("document.title") == "Annotation of instructions"
    assert tab.see("document.images.length") == 0
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}
    body = tab.text("body")
    assert "secret-source" not in page_json(form)
    assert not re.search(r"cls-1|qa-1|__proto__", body)
    # Were markup of an instruction ever made part of the page, the policy would still keep it from running.
    tab.see("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=3\">')")
    tab.see("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=4'}))")
    assert tab.see("document.title") == "Annotation of instructions"


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits(browser: Browser, data: DataSet, tmp_path: Path, width: int) -> None:
    """Nothing sticks out at the side, on a desk or a phone, before and after the start; every input has a label."""
    tab = browser.open(write(make_form(data), tmp_path))
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.see(wide) == 0
    tab.begin("M" * 80)
    tab.see("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert tab.see(wide) == 0
    unlabelled = "[...document.querySelectorAll('input, textarea')].filter((node) => !node.labels.length).length"
    assert tab.see(unlabelled) == 0
    assert tab.see("document.querySelectorAll('fieldset').length") == 4
    assert tab.see("document.querySelectorAll('fieldset:not(:has(legend))').length") == 0


def test_two_tabs_share_their_answers(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """The same form in a second tab does not undo what the first one kept."""
    path = write(make_form(data), tmp_path)
    first = browser.open(path)
    first.begin("Twin")
    second = browser.open(path, beside=first)
    wait_until(lambda: second.text("#name") == "Twin")
    first.click("[name=grammar][value=faulty]")
    wait_until(lambda: second.see("document.querySelector('[name=grammar][value=faulty]').checked"))
    second.click("[name=clarity][value=unclear]")
    kept = "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.endsWith('/Twin'))]).items[0].answers"
    wait_until(lambda: first.see(kept) == {"grammar": "faulty", "clarity": "unclear"})


def test_an_adjudicator_sees_both_answers_without_names(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """The form for what two disagree on asks that alone, shows both answers, and its file is read like the others."""
    form = make_form(data)
    first, second = filled(form, "Ann"), filled(form, "Ben", grammar="faulty", comment="a comma")
    disputed = make_adjudication(data, first, second)
    tab = browser.open(write(disputed, tmp_path))
    assert "Ann" not in page_json(disputed)
    assert "Ben" not in page_json(disputed)
    tab.begin("Cleo")
    assert tab.see("document.querySelectorAll('fieldset').length") == 1
    said = tab.text("fieldset .said")
    assert said in ("One annotator: Correct. The other: Faulty.", "One annotator: Faulty. The other: Correct.")
    assert "remarked: a comma" in tab.text("#questions")
    for _ in range(3):
        tab.key("2")
        tab.key("Enter")
    tab.click("#finish")
    found = read_answers(tab.saved("adjudication-Cleo.json"), "adjudication")
    assert [item.answers for item in found.items] == [{"grammar": "faulty"}] * 3


def test_what_the_browser_keeps_may_be_damaged(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """Answers in the browser that are none are not used: the form begins anew, and a file brings them back."""
    form = make_form(data)
    tab = browser.open(write(form, tmp_path))
    tab.begin("Hedy")
    for damage in ('{"items": [1, 2, 3]}', "{", "null", '{"items": [{}, {}, {}]}'):
        tab.see(f"localStorage[Object.keys(localStorage).find((key) => key.endsWith('/Hedy'))] = {damage!r}")
        tab.reload()
        assert tab.text("#start-title") == "3 items to judge"
    good = tmp_path / "good.json"
    good.write_text(filled(form, "Hedy").model_dump_json())
    tab.give("#load-start", good)
    wait_until(lambda: tab.text("#answered") == "3 answered")


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """Where storage is full or forbidden the page warns as long as that lasts, and a file still has everything."""
    form = make_form(data)
    tab = browser.open(write(form, tmp_path))
    tab.see("Storage.prototype.setItem = () => { throw new Error('full'); }")
    tab.begin("Ida")
    assert "does not keep answers" in tab.text("#warning")
    tab.key("2")
    tab.click("#save")
    saved = json.loads(tab.saved("annotation-Ida-partial.json").read_text())
    assert saved["items"][0]["answers"]["grammar"] == "faulty"

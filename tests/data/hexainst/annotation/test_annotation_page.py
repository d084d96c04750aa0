"""The annotation form in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headless_browser import BROWSER, Browser, wait_until
from sparcom_hexainst.agreement.disputes import make_adjudication
from sparcom_hexainst.annotation.make import DataSet, make_form, read_data
from sparcom_hexainst.annotation.page import page_json, render_page
from sparcom_hexainst.annotation.read import read_answers
from sparcom_hexainst.annotation.schema import Form
from sparcom_hexainst.annotation.testing import filled

EVIL = '</script><img src=x onerror="document.title=1"><!-- <script>document.title=2</script> \u2028 {{ 7*7 }}'
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


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
    """An annotator's session: name, numbers and Enter, a reload, a partial file, missing answers, a complete file."""
    form = make_form(data, seed=3)
    tab = browser.open(write(form, tmp_path))
    tab.begin("Ada Ünver")
    assert tab.text("#place") == "1 of 3"
    for key in "1132":  # correct, none, none of these, unclear
        tab.key(key)
    tab.key("Enter")
    assert tab.text("#place") == "2 of 3"
    assert tab.text("#answered") == "1 answered"
    for key in ("2", "Enter", "2", "1"):  # Enter goes to the open question, and changes no answer
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
    tab.key("Enter")  # on the button focused after the last item
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
    """A file restores answers and name in a fresh browser; files of another form and broken files are refused."""
    form = make_form(data)
    tab = browser.open(write(form, tmp_path))
    file = filled(form, "Grace").model_dump(mode="json")
    bad = tmp_path / "bad.json"
    for change, message in [
        ({"form": "0" * 64}, "belongs to another form"),
        ({"items": file["items"][1:]}, "is missing in this file"),
        ({"items": [file["items"][0] | {"answers": {"grammar": "fine"}}, *file["items"][1:]]}, "not a valid answer"),
        ({"version": 2}, "another version"),
    ]:
        bad.write_text(json.dumps(file | change))
        tab.give("#load-start", bad)
        wait_until(lambda message=message: message in tab.text("#start-status"))
    good = tmp_path / "good.json"
    good.write_text(json.dumps(file))
    tab.give("#load-start", good)
    wait_until(lambda: tab.text("#name") == "Grace")
    assert tab.text("#answered") == "3 answered"
    tab.click("[name=clarity][value=unclear]")
    tab.give("#load", good)  # the page asks before it discards an answer
    wait_until(lambda: tab.see("document.querySelector('[name=clarity][value=clear]').checked"))
    assert browser.dialogs == [
        "One item differs from the answers that this browser keeps for Grace. Replace them with the file?"
    ]


def test_instructions_are_shown_as_text(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """Markup in an instruction is shown and never run; nothing is fetched; category, source and ids are hidden."""
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
    # Even markup that became part of the page could not run, because of the policy.
    tab.see("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=3\">')")
    tab.see("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=4'}))")
    assert tab.see("document.title") == "Annotation of instructions"


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits(browser: Browser, data: DataSet, tmp_path: Path, width: int) -> None:
    """Nothing overflows the width, on desktop or phone, before and after the start; every input has a label."""
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
    """A second tab with the same form does not undo answers of the first."""
    path = write(make_form(data), tmp_path)
    first = browser.open(path)
    first.begin("Lise")
    second = browser.open(path, beside=first)
    wait_until(lambda: second.text("#name") == "Lise")
    first.click("[name=grammar][value=faulty]")
    wait_until(lambda: second.see("document.querySelector('[name=grammar][value=faulty]').checked"))
    second.click("[name=clarity][value=unclear]")
    kept = "JSON.parse(localStorage[Object.keys(localStorage).find((key) => key.endsWith('/Lise'))]).items[0].answers"
    wait_until(lambda: first.see(kept) == {"grammar": "faulty", "clarity": "unclear"})


def test_an_adjudicator_sees_both_answers_without_names(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """The adjudicator's form asks only the dispute and shows both answers; its file is read like the others."""
    form = make_form(data)
    first, second = filled(form, "Ann"), filled(form, "Ben", grammar="faulty", comment="a comma")
    disputed = make_adjudication(data, first, second)
    tab = browser.open(write(disputed, tmp_path))
    assert "Ann" not in page_json(disputed)
    assert "Ben" not in page_json(disputed)
    tab.begin("Cleo")
    assert tab.see("document.querySelectorAll('fieldset').length") == 1
    shown = tab.text("fieldset .said")
    assert shown in ("One annotator: Correct. The other: Faulty.", "One annotator: Faulty. The other: Correct.")
    assert "remarked: a comma" in tab.text("#questions")
    for _ in range(3):
        tab.key("2")
        tab.key("Enter")
    tab.click("#finish")
    found = read_answers(tab.saved("adjudication-Cleo.json"), "adjudication")
    assert [item.answers for item in found.items] == [{"grammar": "faulty"}] * 3


def test_damaged_browser_storage_is_not_used(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """Invalid answers in the browser are not used: the form starts anew, and a file restores them."""
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


def test_full_browser_storage_is_reported(browser: Browser, data: DataSet, tmp_path: Path) -> None:
    """If storage is full or forbidden, the page keeps warning, and a saved file still has every answer."""
    form = make_form(data)
    tab = browser.open(write(form, tmp_path))
    tab.see("Storage.prototype.setItem = () => { throw new Error('full'); }")
    tab.begin("Ida")
    assert "does not keep answers" in tab.text("#warning")
    tab.key("2")
    tab.click("#save")
    saved = json.loads(tab.saved("annotation-Ida-partial.json").read_text())
    assert saved["items"][0]["answers"]["grammar"] == "faulty"

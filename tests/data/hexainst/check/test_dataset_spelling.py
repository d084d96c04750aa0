"""Typing slips, misspellings and foreign languages, and valid texts that resemble them."""

from __future__ import annotations

import pytest

from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_hexainst.check.language import foreign
from sparcom_hexainst.check.spelling import misspellings, slips

pytest.importorskip("py3langid", reason="the extra `dataset` is not installed")

SLIPS = {
    "Put the the lid on.": "'the' twice in a row",
    "Two  spaces stand here.": "two spaces within a sentence at character 4",
    "A space , then a comma.": "a space before a comma or semicolon at character 7",
    "A bell\x07 rings.": "a control character at character 7",
    "It\u00e2\u20ac\u2122s wrong.": "a sign of a decoding error at character 3",
    "Lost \ufffd sign.": "a sign of a decoding error at character 6",
    " Begins late.": "white space at an end at character 1",
    "Ends late.\n": "white space at an end at character 11",
}
NO_SLIPS = [
    "She had had enough, and said that that was it.",
    "Compute a a + b b for x x = 4.",
    "Indent:\n    for word in words:\n        print(word)",
    "One sentence.  Another one after two spaces.",
    "The column\theading, 10 , 11 , 12",
    "Café, naïve, Ångström, São Paulo: â is a letter.",
]


BREAKS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"]
FOREIGN = {
    "fr": "Quelle est la capitale de la Norvège ?",
    "de": "Warum geht der Teig auf, bevor das Brot gebacken wird?",
    "es": "Escribe un poema corto sobre el mar en invierno.",
    "zh": "请把这句话翻译成英文。",
    "ru": "Напиши короткое письмо другу.",
}
NOT_FOREIGN = [
    "def f(xs):\n    return [x ** 2 for x in xs if x % 2]",
    "Solve 3x^2 - 5x + 2 = 0.",
    "SELECT name FROM users WHERE id = 7;",
    "Où?",
    "ZIP 90210?",
    "",
    "Who wrote the long story called Die Verwandlung?",
]


@pytest.mark.parametrize("text", SLIPS)
def test_a_slip_is_named_with_its_place(text: str) -> None:
    """Each kind of slip is named with the position of its character."""
    assert slips(text) == [SLIPS[text]]


def test_a_repeated_slip_is_reported_once() -> None:
    """A line of 10,000 equal words is one finding, not 5,000."""
    assert slips("word " * 10_000 + "end") == ["'word' twice in a row"]


@pytest.mark.parametrize("text", NO_SLIPS)
def test_lookalikes_of_slips_are_ignored(text: str) -> None:
    """Words that may be doubled, indentation, lists of numbers and accents are no slips."""
    assert slips(text) == []


def test_a_misspelling_is_assigned_to_its_text() -> None:
    """Unusual line breaks, 10,000 words and a null do not shift the positions of later texts."""
    texts = [f"one{end}two{end}three" for end in BREAKS] + ["tide and rock " * 3334, "\x00", ""]
    found = misspellings([*texts, "They recieve it.\r\nWe recieve teh rest.", "Nothing here.", "A mesage."])
    last = len(texts)
    assert found == {last: ["recieve (receive)", "recieve (receive)", "teh (the)"], last + 2: ["mesage (message)"]}


def test_identifiers_and_both_spellings_are_accepted() -> None:
    """Code, names, and British and American spelling are no misspellings."""
    texts = [
        "colour color harbour harbor organise organize",
        "def recv_msg(buf): return buf[::-1]",
        "Ljubljana Saoirse",
    ]
    assert misspellings(texts) == {}


def test_a_failing_checker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or failing program is an error with the remedy, never a text without findings."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/bin/false")
    with pytest.raises(MissingExtraError, match=r"typos failed .*reinstall it"):
        misspellings(["recieve"])
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MissingExtraError, match=r"not installed: pip install .*\[dataset\]"):
        misspellings(["recieve"])


def test_a_foreign_language_is_reported_by_its_code() -> None:
    """A sentence in another language is found; formulae, code, names and fragments are not misidentified."""
    texts = [*NOT_FOREIGN, *FOREIGN.values()]
    assert foreign(texts) == dict(enumerate(FOREIGN, start=len(NOT_FOREIGN)))
    assert foreign([FOREIGN["de"], "Why does the dough rise before the bread is baked?"], "de") == {1: "en"}


def test_an_unknown_language_is_refused() -> None:
    """An unknown language code is an error that states the rule."""
    with pytest.raises(InvalidInputError, match="'klingon' is not known"):
        foreign([], "klingon")

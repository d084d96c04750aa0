"""Keep out patterns of translated prose, and words that the glossary retired.

docs/glossary.md lists the words. Every tracked text file is read, except the glossary, this test, and the instruction
set, whose texts other people wrote.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".md", ".j2", ".html", ".js", ".toml", ".yml", ".yaml", ".sh", ".ipynb", ".cff", ""}
EXEMPT = {"tests/test_language.py", "docs/glossary.md", "LICENSE"}
EXEMPT_FOLDERS = ("data/sparcom_hexainst/data/", "tests/analysis/golden/", "tests/data/golden/")

UNIT = (
    "archive|batch|block|byte|category|categories|chunk|expert|file|instruction|job|layer|model|neuron|pass|prompt|rank"
    "|request|response|row|run|second|sequence|set|step|text|thread|token|worker"
)
COUNTED = (
    "additions?|bits?|bytes?|calls?|characters?|chunks?|counts?|experts?|files?|GB|instructions?|KB|kB|KiB|masks?|MB|MiB"
    "|minutes?|ms|neurons?|pages?|positions?|reads?|requests?|rows?|seconds?|times|tokens?|values?|words?|writes?|µs"
)
PATTERNS = {
    "per, not a: 'one mask per token'": rf"\b(?:an?|one|each|\d[\d,.]*) (?:{COUNTED}) an? (?:{UNIT})\b",
    "per, not a: 'rows per step'": rf"\b(?:bytes|files|masks|rows|tokens|MiB|seconds|ms) an? (?:{UNIT})\b",
    "a number per unit": rf"\b\d[\d,.]* an? (?:{UNIT})\b",
    "no noun clause as a title": r'^\s*(?:#+ |r?""")(?:Of what|That|What|Whose)\b',
    "no noun clause as a subject": r"\. What [a-z ]{1,40} (?:is|are) (?:what|that|where)\b",
}
RETIRED = {
    "twin": "CPU reference; fine-tuned model",
    "twins": "CPU references; fine-tuned models",
    "stamps": "write counters",
    "stamped": "counted",
    "outbox": "transfer queue",
    "settlement": "FinishedRequest",
    "namings": "category labels",
    "falling weight": "by descending weight",
    "most_rows": "max_rows",
    "MOST_OF_MEMORY": "MAX_MEMORY_FRACTION",
    "waited_seconds": "backpressure_seconds",
    "T matched": "subsampled to equal length",
    "the mixture": "the MoE model",
    "than chance": "above the permutation null",
    "held out": "test split",
    "goes on with": "activation output",
    "cut into pieces": "split into tiles or chunks",
    "without a word": "silently",
    "says so": "reports it",
    "as many as may": "state the limit",
}
RULES = {rule: re.compile(pattern, re.MULTILINE) for rule, pattern in PATTERNS.items()}
for word, instead in RETIRED.items():
    words = r"\s+".join(map(re.escape, word.split()))  # also across lines
    RULES[f"{word!r} is retired; write {instead!r}"] = re.compile(rf"(?<![\w/.]){words}(?!\w)", re.IGNORECASE)


def texts() -> Iterator[tuple[str, str]]:
    """Yield path and contents of every file that people read."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in SUFFIXES and name not in EXEMPT and not name.startswith(EXEMPT_FOLDERS) and path.is_file():
            yield name, path.read_text(encoding="utf-8")


def found(text: str) -> list[str]:
    """Return line number, rule and match of everything that breaks a rule."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}: {rule}"
        for rule, pattern in RULES.items()
        for match in pattern.finditer(text)
    ]


def test_every_text_keeps_the_rules() -> None:
    """No file breaks a rule."""
    problems = [f"{name}:{problem}" for name, text in texts() for problem in found(text)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "text",
    [
        "The file keeps a mask a token.",
        "It takes 3 additions a layer.",
        "rows a step",
        "12.7 a category",
        "# What a step does",
        '"""Whose rounding the kernel follows."""',
        "A twin of the kernel.",
        "experts in falling\n    weight",
    ],
)
def test_each_rule_can_fail(text: str) -> None:
    """Sentences from earlier versions are reported."""
    assert found(text)


def test_plain_sentences_pass() -> None:
    """Ordinary English passes."""
    assert not found("One mask per token. It reads a row of a step, and takes a token as a start.")

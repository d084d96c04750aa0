"""Public sources of the natural half, and the extraction of an instruction from a record of each.

Each source has a location on the Hugging Face hub, name prefixes of local copies, and an extraction function. The
function maps a record to a `Candidate`, or to None if the record is unsuitable; it holds the patterns and filters.
Nothing here reads files or draws samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FEWEST_WORDS, MOST_WORDS = 2, 250
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instruction that a source offers.

    `source` is its address (`humaneval:HumanEval/9`). `stratum` names its part of the source, so that a draw takes from
    all parts in turn. `id` and `metadata` come from a prepared file, if it has them.
    """

    category: str
    source: str
    license: str
    text: str
    stratum: str = ""
    id: str = ""
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Location of a source on the hub: the data set and the patterns of its files."""

    dataset: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """One public source of one or two categories."""

    name: str
    title: str
    categories: tuple[str, ...]
    hub: HubDataset
    local: tuple[str, ...]  # prefixes of file or folder names, in lower case
    extract: Callable[[Record], Candidate | None]


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, UTF-8 cannot


def _suits(text: str) -> bool:
    return FEWEST_WORDS <= len(text.split()) <= MOST_WORDS and not _LONE_SURROGATE.search(text)


def _candidate(category: str, source: str, licence: str, text: object, stratum: str = "") -> Candidate | None:
    if not isinstance(text, str) or not _suits(text.strip()):
        return None
    return Candidate(category, source, licence, text.strip(), stratum)


def human_eval(record: Record) -> Candidate | None:
    """Return the prompt: imports, signature and docstring, without the body."""
    return _candidate("CODE", f"humaneval:{record.get('task_id', '')}", "MIT", record.get("prompt"))


def trivia_qa(record: Record) -> Candidate | None:
    """Return the question alone, with field names in either spelling (the authors' files or the hub's)."""
    question = record.get("question") or record.get("Question")
    name = record.get("question_id") or record.get("QuestionId") or ""
    return _candidate("QA", f"triviaqa:{name}", "unknown (questions by trivia enthusiasts)", question)


def math_500(record: Record) -> Candidate | None:
    """Return the problem, unless it needs a drawing."""
    problem = record.get("problem")
    if isinstance(problem, str) and "[asy]" in problem:
        return None
    return _candidate("MATH", f"math500:{record.get('unique_id', '')}", "MIT", problem, str(record.get("subject", "")))


_WRITE = re.compile(
    r"(please )?(write|compose|create|generate|draft|design|invent|imagine|come up with|make up|tell|brainstorm|"
    r"develop|propose|suggest|craft|devise|construct|produce)\b",
    re.IGNORECASE,
)
_NOT_WRITING = re.compile(
    r"\b(code|program|function|script|sql|query|python|java|javascript|html|css|c\+\+|regex|regular expression|"
    r"algorithm|class|loop|api|database|equation|formula|calculat\w*|sum of|summar\w*|classif\w*|categor\w*|"
    r"translat\w*|rewrite|edit|paraphras\w*|correct|convert|the following|given|above|below|"
    r"this (sentence|text|article|passage|paragraph))\b",
    re.IGNORECASE,
)


def alpaca(record: Record) -> Candidate | None:
    """Return an instruction without input that asks for writing: no code, no arithmetic, no work on a given text."""
    text = str(record.get("instruction", "")).strip()
    if str(record.get("input") or "").strip() or not _WRITE.match(text) or _NOT_WRITING.search(text):
        return None
    return _candidate("GEN", "alpaca:no-input", "CC-BY-NC-4.0", text)


_FLAN_CLASSES = re.compile(
    r"ag_news|amazon|anli|app_reviews|(?<![a-z])cb(?![a-z])|cola|dbpedia|emotion|imdb|mnli|mrpc|paws|qnli|qqp|"
    r"rotten_tomatoes|(?<![a-z])rte(?![a-z])|sentiment|snli|sst2|trec|(?<![a-z])wic(?![a-z])|wnli|yelp_polarity"
)
_FLAN_SUMMARIES = re.compile(r"xsum|samsum|cnn_dailymail|gigaword|multi_news|aeslc|newsroom|wiki_lingua")
_ASKS_SUMMARY = re.compile(
    r"summar|sum up|in one sentence|in a sentence|briefly|in brief|headline|gist|abstract|few words|main point|tl;?dr|"
    r"subject line|boil",
    re.IGNORECASE,
)
# Some templates of these sources are reversed: they ask for the text of a summary.
_ASKS_TEXT = re.compile(
    r"(write|generate|expand|compose|create)\b((?!(summary|headline|subject line|gist|title) (of|for)\b)[^.\n]){0,40}\b"
    r"(article|story|e-?mail|dialog(ue)?|text|document|conversation)\b(?!('s)? (summar|headline|gist))|"
    r"based on (this|the) (summary|headline|title|subject)|what was (it|the article) about",
    re.IGNORECASE,
)


def flan(record: Record) -> Candidate | None:
    """Return a zero-shot input of a classification or summarisation task; the record names the task."""
    text, task = record.get("inputs"), str(record.get("_task_name") or record.get("task") or "")
    if not isinstance(text, str) or str(record.get("_template_type", "")).startswith("fs"):
        return None
    name = task.lower()
    licence = "Apache-2.0 (FLAN template); the text as its data set says"
    if _FLAN_SUMMARIES.search(name):
        asked = _ASKS_SUMMARY.search(text) and not _ASKS_TEXT.search(text)
        return _candidate("SUM", f"flan:{task}", licence, text, task) if asked else None
    return _candidate("CLS", f"flan:{task}", licence, text, task) if _FLAN_CLASSES.search(name) else None


_FLAN_FILES = tuple(
    f"test/{task}*.jsonl"
    for task in (
        "ag_news", "cb", "cola", "glue_mrpc", "glue_qqp", "imdb", "paws", "rte", "sentiment140", "sst2", "trec", "wic",
        "samsum", "xsum", "cnn_dailymail", "gigaword", "aeslc", "wiki_lingua",
    )
)  # fmt: skip

SOURCES = (
    Source("flan", "FLAN Collection", ("CLS", "SUM"), HubDataset("Muennighoff/flan", _FLAN_FILES), ("flan",), flan),
    Source(
        "humaneval",
        "HumanEval",
        ("CODE",),
        HubDataset("openai/openai_humaneval", ("openai_humaneval/test-*.parquet",)),
        ("humaneval", "openai_humaneval"),
        human_eval,
    ),
    Source(
        "triviaqa",
        "TriviaQA",
        ("QA",),
        HubDataset("mandarjoshi/trivia_qa", ("rc.wikipedia.nocontext/validation-*.parquet",)),
        ("triviaqa", "trivia_qa", "wikipedia-dev"),
        trivia_qa,
    ),
    Source(
        "alpaca",
        "Alpaca",
        ("GEN",),
        HubDataset("tatsu-lab/alpaca", ("data/train-*.parquet",)),
        ("alpaca",),
        alpaca,
    ),
    Source(
        "math500",
        "MATH-500",
        ("MATH",),
        HubDataset("HuggingFaceH4/MATH-500", ("test.jsonl",)),
        ("math500", "math-500", "math_500"),
        math_500,
    ),
)

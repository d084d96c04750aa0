"""Extraction of instructions from records of each public source. The texts are made up."""

from __future__ import annotations

from typing import Any

import pytest

from sparcom_hexainst.build.sources import SOURCES, Candidate, alpaca, flan, human_eval, math_500, trivia_qa
from sparcom_hexainst.categories import CATEGORIES

HUMAN_EVAL = {
    "task_id": "HumanEval/900",
    "prompt": '\n\ndef halve(n: int) -> int:\n    """ Half of an even number.\n    >>> halve(8)\n    4\n    """\n',
    "canonical_solution": "    return n // 2\n",
    "test": "def check(candidate):\n    assert candidate(8) == 4\n",
    "entry_point": "halve",
}
TRIVIA_HUB = {
    "question": "Which lighthouse stood at Pharos? ",
    "question_id": "tc_9001",
    "question_source": "http://www.example.org/",
    "entity_pages": {"title": ["Lighthouse"]},
    "search_results": {"rank": []},
    "answer": {"value": "Alexandria", "aliases": []},
}
TRIVIA_AUTHORS = {
    "Answer": {"Value": "Alexandria"},
    "EntityPages": [],
    "Question": "Which lighthouse stood at Pharos?",
    "QuestionId": "odql_9001",
    "QuestionSource": "http://www.example.org/",
}
MATH = {
    "problem": "What is $3 \\cdot 7$?",
    "solution": "$\\boxed{21}$",
    "answer": "21",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/9001.json",
}
ALPACA = {"instruction": "Write a short poem about rain.", "input": "", "output": "Rain.", "text": "Below is …"}
FLAN = {
    "inputs": "Is this review good or bad?\n\nThe soup was cold.",
    "targets": "bad",
    "task": "sst2",
}
FLAN_2 = {
    "inputs": "Premise: It rains.\nHypothesis: It is wet.\nDoes the premise entail the hypothesis?",
    "targets": "yes",
    "_template_idx": 3,
    "_task_source": "Flan2021",
    "_task_name": "super_glue/rte:1.0.2",
    "_template_type": "zs_noopt",
}


def without(record: dict[str, Any], **changed: object) -> dict[str, Any]:
    """Return the record with other values; None removes a field."""
    return {name: value for name, value in {**record, **changed}.items() if value is not None}


def taken(candidate: Candidate | None) -> tuple[str, str, str, str]:
    assert candidate is not None
    return candidate.category, candidate.source, candidate.text, candidate.stratum


def test_humaneval_gives_its_prompt() -> None:
    """The prompt is signature and docstring without surrounding empty lines, solution and test."""
    assert taken(human_eval(HUMAN_EVAL)) == ("CODE", "humaneval:HumanEval/900", HUMAN_EVAL["prompt"].strip(), "")


def test_triviaqa_gives_its_question_in_either_spelling() -> None:
    """The hub's lower-case fields and the authors' capitalized ones give the same question and id."""
    question = "Which lighthouse stood at Pharos?"
    assert taken(trivia_qa(TRIVIA_HUB)) == ("QA", "triviaqa:tc_9001", question, "")
    assert taken(trivia_qa(TRIVIA_AUTHORS)) == ("QA", "triviaqa:odql_9001", question, "")


def test_math_500_gives_its_problem_by_subject() -> None:
    """The problem is unchanged; subjects are strata."""
    assert taken(math_500(MATH)) == ("MATH", "math500:test/prealgebra/9001.json", MATH["problem"], "Prealgebra")


def test_flan_gives_a_zero_shot_input_by_task() -> None:
    """The task decides the category, whichever field names it; tasks are strata."""
    assert taken(flan(FLAN)) == ("CLS", "flan:sst2", FLAN["inputs"], "sst2")
    assert taken(flan(FLAN_2)) == ("CLS", "flan:super_glue/rte:1.0.2", FLAN_2["inputs"], "super_glue/rte:1.0.2")


def test_a_drawing_or_few_shots_are_left_out() -> None:
    """Problems that need a drawing, and inputs with solved examples, are excluded."""
    assert math_500(without(MATH, problem="Find $x$.\n[asy]draw((0,0)--(1,1));[/asy]")) is None
    assert flan(without(FLAN_2, _template_type="fs_opt")) is None
    assert flan(without(FLAN_2, _template_type="fs_noopt")) is None
    assert flan(without(FLAN_2, _template_type="zs_opt")) is not None


WRITING = [
    "Write a letter to a friend who has moved away.",
    "Compose a song for a rainy day",
    "Come up with five names for a bakery.",
    "please make up a riddle about a key",
    "Tell me a story about a lost glove.",
    "Brainstorm ideas for a school play.",
]
NOT_WRITING = {
    "code": "Write a Python function that doubles a list.",
    "a program": "Create a program to sort names.",
    "markup": "Generate HTML for a page with a table.",
    "a sum": "Write an equation for a line through two points.",
    "a text given": "Write a reply to the following letter.",
    "a text meant": "Create a title for this article",
    "a summary": "Write a summary of the French Revolution.",
    "another's text": "Compose a translation of a haiku",
    "an edit": "Write and edit a sentence.",
    "no writing": "What is the capital of Norway?",
    "writing later on": "Explain how to write a letter.",
}


@pytest.mark.parametrize("text", WRITING)
def test_alpaca_gives_requests_for_writing(text: str) -> None:
    """Instructions without input that ask for a new text are taken; an empty or null input counts as none."""
    for empty in ("", "  ", None):
        assert taken(alpaca({**ALPACA, "instruction": text, "input": empty})) == ("GEN", "alpaca:no-input", text, "")


@pytest.mark.parametrize("case", NOT_WRITING)
def test_alpaca_excludes_other_categories(case: str) -> None:
    """Code, arithmetic, work on a given text and questions are excluded, and so are instructions with input."""
    assert alpaca(without(ALPACA, instruction=NOT_WRITING[case])) is None
    assert alpaca(without(ALPACA, input="Rain, rain.")) is None


CLASSES = [
    "ag_news_subset", "anli/r1:0.1.0", "app_reviews", "cb", "super_glue/cb:1.0.2", "cola",
    "glue/cola:2.0.0", "dbpedia_14", "emotion", "imdb_reviews", "glue_mnli", "glue_mrpc",
    "paws_wiki:1.1.0", "qnli", "qqp", "rotten_tomatoes", "rte", "sentiment140",
    "snli", "sst2", "trec", "wic", "wnli", "yelp_polarity_reviews",
    "amazon_polarity", "T0/amazon_polarity",
]  # fmt: skip
SUMMARIES = [
    "xsum", "samsum", "cnn_dailymail", "gigaword", "multi_news", "aeslc",
    "newsroom", "wiki_lingua_english_en", "CNN_DailyMail",
]  # fmt: skip
OTHERS = [
    "squad_v1", "gsm8k", "wmt16_translate", "natural_questions", "cbt", "scbench",
    "article", "wicked", "common_gen", "quartet", "math_dataset",
]  # fmt: skip


@pytest.mark.parametrize("task", CLASSES)
def test_flan_tasks_of_classification(task: str) -> None:
    """Tasks that choose a label are CLS, under any of their names."""
    assert taken(flan({"inputs": "Good or bad? A fine day.", "task": task}))[0] == "CLS"


@pytest.mark.parametrize("task", SUMMARIES)
def test_flan_tasks_of_summarisation(task: str) -> None:
    """Summarisation tasks are SUM, under any of their names."""
    assert taken(flan({"inputs": "Rain fell. It was cold.\n\nSummarize the text.", "_task_name": task}))[0] == "SUM"


@pytest.mark.parametrize("task", [*OTHERS, "", None])
def test_other_flan_tasks_are_left_out(task: str | None) -> None:
    """Names that merely contain a task's name, other tasks and missing names give nothing."""
    assert flan({"inputs": "Summarize: rain fell.", "task": task}) is None


ARTICLE = "Snow closed two roads near the town on Monday. Ploughs were out by noon."
ASKS_SUMMARY = [
    f"Summarize this article in one sentence.\n\n{ARTICLE}",
    f"{ARTICLE}\n\nBriefly summarize that.",
    f"{ARTICLE}\n\nSum up the text above.",
    f"Write a headline for it: {ARTICLE}",
    f"What is the gist? {ARTICLE}",
    f"What is the subject line for this email?\n\n{ARTICLE}",
    f"{ARTICLE}\n\nWhat are the main points?",
    f"{ARTICLE}\n\nTL;DR",
    f"Here is a dialogue:\n{ARTICLE}\n\nWrite a short summary!",
    f"Write a short summary for this text: {ARTICLE}",
    f"Write a subject line for this email.\n{ARTICLE}",
    f"Generate an article summary: {ARTICLE}",
    f"Create the dialogue's summary: {ARTICLE}",
]
ASKS_TEXT = [
    "Write an article based on this summary:\n\nSnow closed roads.",
    "Summary: snow closed roads.\n\nWrite a long article that matches.",
    'Write an email with the subject line "Snow".',
    "Write a dialogue based on this summary:\nTwo drivers talk of snow.",
    "Expand this headline into a story: Snow closes roads",
    "Write an expanded news article with plenty of details from the following summary: snow closed roads.",
    "Generate a conversation with this summary: two drivers talk of snow.",
    "Based on the headline, tell what happened: Snow closes roads",
    "Generate the text that was summarised so: snow closed roads.",
    ARTICLE,
]


@pytest.mark.parametrize("text", ASKS_SUMMARY)
def test_flan_templates_that_ask_for_a_summary(text: str) -> None:
    """Templates that ask for something shorter are taken, in their many wordings."""
    assert taken(flan({"inputs": text, "task": "xsum"})) == ("SUM", "flan:xsum", text, "xsum")


@pytest.mark.parametrize("text", ASKS_TEXT)
def test_reversed_flan_templates_are_excluded(text: str) -> None:
    """Templates that ask for the text of a summary, and texts without a request, are excluded."""
    assert flan({"inputs": text, "task": "xsum"}) is None


EXTRACTORS = {
    "humaneval": (HUMAN_EVAL, "prompt"),
    "triviaqa": (TRIVIA_HUB, "question"),
    "alpaca": (ALPACA, "instruction"),
    "math500": (MATH, "problem"),
    "flan": (FLAN, "inputs"),
}
UNFIT = [None, "", " \n", "Write", 7, ["Write a poem"], {"text": "Write a poem"}, "Write a \ud83d poem", "Write " * 251]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_source_excludes_invalid_texts(source: Any) -> None:
    """No text, one word, more than 250 words, another type or a lone surrogate: no candidate and no error."""
    record, field = EXTRACTORS[source.name]
    assert source.extract(record).category in source.categories
    assert [source.extract({**record, field: unfit}) for unfit in UNFIT] == [None] * len(UNFIT)
    assert source.extract({}) is None
    longest = source.extract({**record, field: "Write " + "on " * 249})
    assert longest is not None
    assert len(longest.text.split()) == 250


def test_every_category_has_one_source() -> None:
    """Every category has exactly one source, with a licence and a location on the hub."""
    assert sorted(name for source in SOURCES for name in source.categories) == sorted(CATEGORIES)
    for source in SOURCES:
        record, _ = EXTRACTORS[source.name]
        assert source.extract(record).license  # type: ignore[union-attr]
        assert source.hub.dataset.count("/") == 1
        assert source.hub.patterns
        assert all(beginning == beginning.lower() for beginning in source.local)

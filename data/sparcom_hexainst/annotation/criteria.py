"""Criteria by which people judge an instruction, from the paper's post-validation, with their values and examples.

The form shows these texts, docs/annotation.md repeats the examples, and readers of answers accept only these values.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from sparcom_data.errors import InvalidInputError
from sparcom_hexainst.categories import CATEGORIES

NONE_OF_THESE = "none of these"
CATEGORY = "category"


class Option(BaseModel):
    """One value of a criterion: `value` in files, `label` in the form, and a hint on its meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str
    label: str
    hint: str = ""


class Example(BaseModel):
    """An example instruction, its correct value, and the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    value: str
    why: str


class Criterion(BaseModel):
    """One question that the form asks about every instruction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    question: str
    options: tuple[Option, ...]
    examples: tuple[Example, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """Allowed answers, in the order of the form."""
        return tuple(option.value for option in self.options)


GRAMMAR = Criterion(
    name="grammar",
    title="Grammar",
    question="Is the instruction written in correct language? Faults in material that it quotes do not count.",
    options=(
        Option(value="correct", label="Correct"),
        Option(value="faulty", label="Faulty", hint="grammar, spelling or punctuation is wrong; say where"),
    ),
    examples=(
        Example(
            text="Which of these two sentence are the more polite one?",
            value="faulty",
            why="“sentence” must be plural, and “are” must be “is”.",
        ),
        Example(
            text="Find the mistake in “He go to school every day” and explain it.",
            value="correct",
            why="The mistake is the material; the instruction itself has none.",
        ),
    ),
)
REDUNDANCY = Criterion(
    name="redundancy",
    title="Redundancy",
    question="Does it repeat itself, or ask the same as another item? Of two items that ask the same, mark only the "
    "one with the higher number.",
    options=(
        Option(value="none", label="None"),
        Option(value="padded", label="Padded", hint="needlessly repeated, or words that add nothing"),
        Option(value="same", label="Same as another", hint="asks the same as an earlier item; name its number below"),
    ),
    examples=(
        Example(
            text="Write a poem about rain. The poem that you write should be about rain and should be a poem.",
            value="padded",
            why="The second sentence adds nothing to the first.",
        ),
        Example(
            text="Tell me which city is the capital of Peru.",
            value="same",
            why="An earlier item was “What is Peru’s capital?”: other words, the same task and the same answer.",
        ),
    ),
)
CLARITY = Criterion(
    name="clarity",
    title="Clarity",
    question="From these words alone, could someone who knows the subject understand the task and start at once?",
    options=(
        Option(value="clear", label="Clear"),
        Option(value="unclear", label="Unclear", hint="something is missing, or it can be read in two ways; say what"),
    ),
    examples=(
        Example(
            text="Summarise the report above in two sentences.",
            value="unclear",
            why="There is no report above it.",
        ),
        Example(
            text="How many days are there from 3 March to 17 March, counting the first of them and not the last?",
            value="clear",
            why="It says what is counted, and there is one answer.",
        ),
    ),
)
CATEGORY_EXAMPLES = (
    Example(
        text="Is “The soup was cold and the waiter colder” praise or a complaint?",
        value="CLS",
        why="The task is to choose a label for a given item. The item is a text, but no summary is asked for.",
    ),
    Example(
        text="Say in one sentence what this function returns: def f(n): return n * (n + 1) // 2",
        value="CODE",
        why="The task is to explain a program. The sum in it need not be computed.",
    ),
)
CRITERIA = ("grammar", "redundancy", CATEGORY, "clarity")
SOUND = {"grammar": "correct", "redundancy": "none", "clarity": "clear"}


def criteria_for(categories: Sequence[str]) -> tuple[Criterion, ...]:
    """Return the criteria of a form for instructions of these categories. Without categories, none asks for one.

    Raises:
        InvalidInputError: a category has the name of the answer "none of these".
    """
    if NONE_OF_THESE in categories:
        raise InvalidInputError(
            f"no category may be called {NONE_OF_THESE!r}: the form reserves this answer. Rename the category"
        )
    if not categories:
        return (GRAMMAR, REDUNDANCY, CLARITY)
    return (GRAMMAR, REDUNDANCY, _category(categories), CLARITY)


def _category(categories: Sequence[str]) -> Criterion:
    options = [Option(value=name, label=name, hint=CATEGORIES.get(name, "")) for name in categories]
    return Criterion(
        name=CATEGORY,
        title="Category",
        question="Which kind of task is it? Judge by what is asked for, not by what the text is about.",
        options=(
            *options,
            Option(value=NONE_OF_THESE, label="None of these", hint="no category fits, or two fit equally"),
        ),
        examples=tuple(example for example in CATEGORY_EXAMPLES if example.value in categories),
    )

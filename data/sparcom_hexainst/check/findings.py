"""What a check of instructions finds: one fact a finding, with its rule, its place and what to do about it.

Errors break a rule that every set of instructions has to keep; warnings are what a careful person would look at.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# rule: (level, what it asks). The order is that of the report.
RULES: dict[str, tuple[Literal["error", "warning"], str]] = {
    "line": ("error", "every line is a JSON object with known fields and exactly one of text, messages, token_ids"),
    "id": ("error", "every id occurs once"),
    "hash": ("error", "sha256, where given, is that of the text"),
    "duplicate": ("error", "no two instructions have the same text"),
    "near-duplicate": ("error", "no two share half of the 4-word runs of the shorter one"),
    "template": ("warning", "nor do two of the natural half, whose sources put many items into one template"),
    "contamination": ("error", "the synthetic half, or the checked files, share no such half with what they may not"),
    "overlap": ("warning", "the same two parts share no 13 words in a row"),
    "category": ("warning", "every instruction names its category"),
    "half": ("warning", "a half, where one is named, is synthetic or natural"),
    "balance": ("warning", "every category has as many instructions, in each half"),
    "length": ("warning", "the median lengths of the categories lie within a factor of two, in each half"),
    "openings": ("warning", "at least 70 % of a category's instructions in a half begin with different three words"),
    "language": ("warning", "every text is in the set's language"),
    "spelling": ("warning", "no word is a known misspelling"),
    "slip": ("warning", "no word twice in a row, stray space, control character or sign of a wrong decoding"),
}


class Finding(BaseModel):
    """One thing found.

    `where` names file and line (or a category and half), `id` the instruction, `message` value and remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    where: str
    id: str = ""
    message: str

    @property
    def level(self) -> Literal["error", "warning"]:
        return RULES[self.rule][0]


class Quantiles(BaseModel):
    """Lengths of a group's instructions: shortest, median and longest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shortest: int
    median: float
    longest: int


class Group(BaseModel):
    """A category within a half, counted.

    `words` and `tokens` are None where nothing can be read as text, and where no tokenizer was given; `openings` is the
    number of different first three words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    half: str
    instructions: int
    words: Quantiles | None
    tokens: Quantiles | None
    openings: int

    @property
    def name(self) -> str:
        """For messages: the category, with the half where the set has halves."""
        return " ".join(filter(None, [self.category or "no category", self.half]))


class Report(BaseModel):
    """All that a check found. It passes where no error is among it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: list[str]
    instructions: int
    groups: list[Group]
    findings: list[Finding]
    skipped: list[str]

    def of(self, rule: str) -> list[Finding]:
        """The findings of one rule."""
        return [finding for finding in self.findings if finding.rule == rule]

    def count(self, level: Literal["error", "warning"]) -> int:
        """How many findings are of this level."""
        return sum(finding.level == level for finding in self.findings)

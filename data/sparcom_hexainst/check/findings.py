"""Findings of a check of instructions: one fact per finding, with its rule, location and remedy.

Errors break a rule that every set of instructions must keep; warnings deserve a look.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# rule: (level, requirement), in the order of the report.
RULES: dict[str, tuple[Literal["error", "warning"], str]] = {
    "line": ("error", "every line is a JSON object with known fields and exactly one of text, messages, token_ids"),
    "id": ("error", "every id occurs once"),
    "hash": ("error", "sha256, if given, is that of the text"),
    "duplicate": ("error", "no two instructions have the same text"),
    "near-duplicate": ("error", "no two share half of the 4-word runs of the shorter one"),
    "template": ("warning", "no two of the natural half do so either; its sources put many items into one template"),
    "contamination": ("error", "the halves, or the checked files and those of --against, share no near-duplicates"),
    "overlap": ("warning", "these parts share no 13 words in a row"),
    "category": ("warning", "every instruction names its category"),
    "half": ("warning", "the half, if named, is synthetic or natural"),
    "balance": ("warning", "all categories have equally many instructions, in each half"),
    "length": ("warning", "the median lengths of the categories lie within a factor of two, in each half"),
    "openings": ("warning", "at least 70 % of a category's openings (first three words) are distinct, in each half"),
    "language": ("warning", "every text is in the set's language"),
    "spelling": ("warning", "no word is a known misspelling"),
    "slip": ("warning", "no doubled word, stray space, control character or decoding error"),
}


class Finding(BaseModel):
    """One finding.

    `where` names file and line (or category and half), `id` the instruction; `message` states value and remedy.
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
    """Statistics of a category within a half.

    `words` and `tokens` are None without readable texts, `tokens` also without a tokenizer. `openings` is the number of
    distinct first three words.
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
        """Name for messages: the category, and the half if the set has halves."""
        return " ".join(filter(None, [self.category or "no category", self.half]))


class Report(BaseModel):
    """Results of a check. It passes if no finding is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: list[str]
    instructions: int
    groups: list[Group]
    findings: list[Finding]
    skipped: list[str]

    def of(self, rule: str) -> list[Finding]:
        """Return the findings of one rule."""
        return [finding for finding in self.findings if finding.rule == rule]

    def count(self, level: Literal["error", "warning"]) -> int:
        """Return the number of findings of this level."""
        return sum(finding.level == level for finding in self.findings)

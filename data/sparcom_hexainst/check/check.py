"""Check the quality of a set of instructions: HexaInst or any other file of instructions.

1. Read every line of every file. Lines that break a rule become findings; the others are checked further.
2. Each instruction alone: hash, category, language, spelling, slips.
3. Pairs: same texts, near-duplicates, and overlap of parts that must be independent.
4. Groups (a category within a half): numbers, lengths, and distinct openings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_data.extras import install_command
from sparcom_data.instructions import Instruction, text_sha256
from sparcom_data.instructions.files import read_file
from sparcom_hexainst.categories import HALVES
from sparcom_hexainst.check.against import read_against
from sparcom_hexainst.check.findings import Finding, Report
from sparcom_hexainst.check.groups import balance, describe_groups, group_findings
from sparcom_hexainst.check.language import foreign
from sparcom_hexainst.check.pairs import Member, contamination, same_texts, similar_texts
from sparcom_hexainst.check.spelling import misspellings, slips


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of a check.

    `against`: files whose texts the checked set must not contain. `tokenizer`: reports lengths in its tokens as well as
    in words. `language`: ISO 639-1 code of the set.
    """

    against: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    language: str = "en"


def check_files(paths: Sequence[Path], options: CheckOptions | None = None) -> Report:
    """Check instructions of one or more files as one set.

    Raises:
        InvalidInputError: a file cannot be read, an option cannot be used, or no line holds an instruction.
    """
    options = options or CheckOptions()
    members, findings = _read(paths)
    others, skipped = _read_against(options.against)
    if not members and not findings:
        raise InvalidInputError(f"nothing to check: {', '.join(map(str, paths))} has no instruction")
    single, unchecked = _of_each(members, options)
    findings += single
    findings += _ids(members)
    findings += same_texts(members)
    findings += similar_texts(members)
    findings += contamination(members, others)
    groups = describe_groups(members, options.tokenizer)
    findings += [*balance(groups), *group_findings(groups)]
    return Report(
        files=[str(path) for path in paths],
        instructions=len(members),
        groups=groups,
        findings=findings,
        skipped=[*unchecked, *skipped],
    )


def _read(paths: Sequence[Path]) -> tuple[list[Member], list[Finding]]:
    members: list[Member] = []
    findings: list[Finding] = []
    for path in paths:
        found = read_file(path)
        members += [Member(where, item) for where, item in found.instructions.items()]
        for problem in found.problems:
            where, _, message = problem.partition(": ")
            findings.append(Finding(rule="line", where=where, message=message))
    return members, findings


def _read_against(paths: Sequence[Path]) -> tuple[list[Member], list[str]]:
    """Return the texts to compare the set with, and a message per file with records that were skipped."""
    others: list[Member] = []
    skipped = []
    for path in paths:
        found, empty = read_against(path)
        others += found
        if empty:
            skipped.append(f"{empty} records without a text in {path}, with which the set is compared")
    return others, skipped


def _ids(members: Sequence[Member]) -> Iterator[Finding]:
    """Yield one finding per line that repeats an earlier id."""
    first: dict[str, Member] = {}
    for member in members:
        earlier = first.setdefault(member.id, member)
        if earlier is not member:
            yield member.finding("id", f"{earlier.where} has the same id; give this one another")


def _of_each(members: Sequence[Member], options: CheckOptions) -> tuple[list[Finding], list[str]]:
    """Return findings on single instructions, and a message per check that was skipped."""
    findings: defaultdict[str, list[Finding]] = defaultdict(list)
    for member in members:
        item = member.instruction
        if problem := _hash_problem(item):
            findings["hash"].append(member.finding("hash", problem))
        if not item.category:
            findings["category"].append(member.finding("category", "no category; give one"))
        findings["slip"] += [member.finding("slip", slip) for slip in slips(item.readable)]
    texts = [member.text for member in members]
    skipped = []
    try:
        for position, code in foreign(texts, options.language).items():
            message = f"the text seems to be in {code!r}, not in {options.language!r}"
            findings["language"].append(members[position].finding("language", message))
    except ModuleNotFoundError as error:
        skipped.append(f"language: it needs {error.name}, which is not installed: {install_command('dataset')}")
    try:
        for position, found in misspellings(texts).items():
            findings["spelling"].append(members[position].finding("spelling", ", ".join(dict.fromkeys(found))))
    except MissingExtraError as error:
        skipped.append(f"spelling: {error}")
    findings["half"] += _halves(members)
    if unread := sum(not text for text in texts):
        skipped.append(f"{unread} instructions given as token ids: checks of texts do not apply to them")
    return [finding for rule in findings.values() for finding in rule], skipped


def _halves(members: Sequence[Member]) -> Iterator[Finding]:
    """Yield one finding per unknown half: all but `natural` count as synthetic, so a misspelling changes the half."""
    for member in members:
        if member.half not in ("", *HALVES):
            yield member.finding("half", f"half is {member.half!r}; write {' or '.join(HALVES)}, or omit it")


def _hash_problem(item: Instruction) -> str:
    if not item.sha256 or not item.readable or item.sha256 == text_sha256(item.readable):
        return ""
    return (
        f"sha256 is {item.sha256[:12]}…, that of the text {text_sha256(item.readable)[:12]}…: "
        "the text was changed or cut; copy it from its source again, or update the hash"
    )

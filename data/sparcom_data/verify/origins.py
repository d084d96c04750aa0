"""Check the recorded origins of prompt tokens: `token/origin` and the two lengths that count its values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparcom_data.archive import Archive
from sparcom_data.errors import ArchiveError
from sparcom_data.schema import SPECIAL_LENGTH, TEMPLATE_LENGTH, TOKEN_ORIGIN, Origin
from sparcom_data.verify.values import Check

BLOCK_ROWS = 1 << 20  # read at once, 1 MiB


def check_origins(archive: Archive) -> Check:
    """Check that lengths by origin fit the prompts and, in archives of masks, equal the sums over `token/origin`."""
    check = Check("origins")
    try:
        check.findings.extend(_length_problems(archive))
        if archive.granularity == "token" and archive.attributes.capture.positions != "response":
            check.findings.extend(_row_problems(archive))
    except (ArchiveError, IndexError) as error:
        check.findings.append(str(error))
    check.looked_at = f"{len(archive.instructions.complete)} complete instructions"
    return check


def _lengths(archive: Archive) -> list[list[int]]:
    specs = (TEMPLATE_LENGTH, SPECIAL_LENGTH)
    return [archive.column(spec.name.removeprefix("instruction/")).tolist() for spec in specs]


def _length_problems(archive: Archive) -> Iterator[str]:
    table = archive.instructions
    for name, template, special, prompt in zip(table.id, *_lengths(archive), table.prompt_length.tolist(), strict=True):
        unknown = template == special == -1
        if not unknown and (min(template, special) < 0 or template + special > prompt):
            yield (
                f"instruction {name!r}: template_length {template} and special_length {special} do not fit "
                f"{prompt} prompt tokens"
            )


def _row_problems(archive: Archive) -> Iterator[str]:
    table, lengths = archive.instructions, _lengths(archive)
    first, held = 0, np.empty(0, dtype=np.uint8)
    for index in table.complete[np.argsort(table.token_start[table.complete], kind="stable")].tolist():
        start, prompt = int(table.token_start[index]), int(table.prompt_length[index])
        if start + prompt > first + len(held):
            last = max(start + prompt, min(start + BLOCK_ROWS, archive.tokens))
            first, held = start, archive.read_rows(TOKEN_ORIGIN.name, start, last)
        rows = held[start - first : start - first + prompt]
        found = [int((rows == origin).sum()) for origin in (Origin.TEMPLATE, Origin.SPECIAL)]
        if (rows == Origin.UNKNOWN).any():
            found = [-1, -1]
        expected = [column[index] for column in lengths]
        if found != expected or not np.isin(rows, [*Origin]).all() or (rows == Origin.RESPONSE).any():
            yield (
                f"instruction {table.id[index]!r}: token/origin must hold {expected} template and special tokens of "
                f"the prompt, -1 for unknown; it holds {found}"
            )

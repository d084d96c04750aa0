"""Compare an archive with that of an undisturbed run, and start processes whose chunks hold few instructions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sparcom_data.archive import Archive
from sparcom_data.schema import State
from sparcom_data.verify import verify_archive
from sparcom_verification.limits import DIFFERING_BITS_AFTER_RESUME

_SMALL_CHUNKS = """
from sparcom_data.schema import layout
layout.MAX_CHUNK_TOKENS, layout.COUNT_CHUNK_BYTES = 256, 1 << 13
"""


def small_chunks_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that, like its children, makes chunks of few instructions."""
    (folder / "sitecustomize.py").write_text(_SMALL_CHUNKS)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def assert_like(archive: Archive, expected: Archive) -> None:
    """Check that every instruction is complete, once, with the values of the undisturbed run `expected`."""
    assert [check.findings for check in verify_archive(archive, None) if not check.passed] == []
    assert archive.attributes.state == "complete"
    assert archive.instructions.id == expected.instructions.id
    assert set(archive.instructions.state.tolist()) == {State.COMPLETE}
    assert archive.strings("response") == expected.strings("response")
    assert archive.instructions.token_length.tolist() == expected.instructions.token_length.tolist()
    _assert_equal_values(archive, expected)


def _assert_equal_values(archive: Archive, expected: Archive) -> None:
    if archive.granularity == "count":
        counts, others = (one.read_counts(0, len(one.instructions)).astype(np.int64) for one in (archive, expected))
        bits = int(archive.instructions.token_length.sum()) * archive.layers * archive.neurons
        assert int(np.abs(counts - others).sum()) <= DIFFERING_BITS_AFTER_RESUME * bits
        return
    assert all(map(np.array_equal, archive.read_tokens(0, archive.tokens), expected.read_tokens(0, expected.tokens)))
    masks, others = (one.read_active(0, one.tokens) for one in (archive, expected))  # reserved rows included
    differing = int(np.bitwise_count(masks ^ others).sum())
    assert differing <= DIFFERING_BITS_AFTER_RESUME * masks.shape[0] * archive.layers * archive.neurons, differing

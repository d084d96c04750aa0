"""`--tokens content` excludes tokens of the template and the tokenizer from T and every count; checked with NumPy."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from sparcom_analysis import (
    activation_counts,
    activation_frequencies,
    analyze,
    expert_frequencies,
    find_ises,
    find_isns,
)
from sparcom_analysis.archive.counted_rows import counted_rows
from sparcom_analysis.archive.rows import row_spans
from sparcom_analysis.matching import match_instructions
from sparcom_analysis.options import Options
from sparcom_data.archive import open_archive
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.testing import write_random_archive


class Plain:
    """Reference: the archive read with zarr and NumPy, one instruction at a time, content rows only."""

    def __init__(self, path: str | Path) -> None:
        self.group = zarr.open_group(path, mode="r")
        self.complete = np.flatnonzero(self.group["instruction/state"][:] == 1)  # type: ignore[index]
        self.categories = [str(self.group["instruction/category"][k]) for k in self.complete]  # type: ignore[index]

    def column(self, name: str, k: int) -> NDArray[Any]:
        """Rows of content of instruction k."""
        start, length = (int(self.group[f"instruction/{one}"][k]) for one in ("token_start", "token_length"))  # type: ignore[index, arg-type]
        rows = slice(start, start + length)
        return np.asarray(self.group[name][rows])[np.asarray(self.group["token/origin"][rows]) == 0]  # type: ignore[index]

    def frequencies(self, k: int, population: str) -> NDArray[np.float64]:
        """p of equations 6 and 8."""
        name = f"{population}/active"
        masks = np.unpackbits(self.column(name, k), axis=-1, bitorder="little", count=self.group[name].attrs["size"])
        if population != "expert_neuron":
            return masks.mean(axis=0)  # type: ignore[no-any-return]
        chosen = self.column("router/expert", k)
        return np.stack([(masks * (chosen == e)[..., None]).sum(axis=2) for e in range(6)], axis=2).mean(axis=0)  # type: ignore[no-any-return]

    def sets(self, population: str, top: float) -> list[set[int]]:
        """Equations 7 and 9."""
        found = []
        for k in self.complete:
            p = self.frequencies(int(k), population).ravel()
            least = np.sort(p)[::-1][int(np.ceil(top * p.size)) - 1]
            found.append(set(np.flatnonzero((p >= least) & (p > 0)).tolist()))
        return found

    def similarity(self, population: str, top: float) -> list[list[float]]:
        """Equation 10."""
        sets, labels = self.sets(population, top), list(dict.fromkeys(self.categories))
        pairs = {(one, other): [] for one, other in product(labels, labels)}  # type: ignore[var-annotated]
        for (a, one), (b, other) in product(zip(sets, self.categories, strict=True), repeat=2):
            pairs[one, other].append(len(a & b) / len(a | b) if a | b else np.nan)
        return [[float(np.mean(pairs[one, other])) for other in labels] for one in labels]


@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_content_of_a_dense_archive_equals_numpy(tmp_path: Path, block_bytes: int) -> None:
    """T, similarity and facts equal those of rows with origin 0, for any block size."""
    write_random_archive(tmp_path / "a.zarr", origins=True, failed=(3,), lengths=(6, 30))
    plain = Plain(tmp_path / "a.zarr")
    isn = find_isns(tmp_path / "a.zarr", top=0.2, counted_tokens="content", block_bytes=block_bytes)
    np.testing.assert_allclose(isn.pairs.means()[0], plain.similarity("neuron", 0.2), rtol=0, atol=1e-12)
    origins = [np.asarray(plain.column("token/origin", int(k))) for k in plain.complete]
    assert isn.tokens.tolist() == [len(one) for one in origins]
    lengths, template, special = (
        int(np.asarray(plain.group[f"instruction/{name}_length"][:])[plain.complete].sum())  # type: ignore[index]
        for name in ("prompt", "template", "special")
    )
    assert isn.token_facts.counted_tokens == "content"
    assert isn.token_facts.template_rows == template + special == lengths - isn.tokens.sum()


def test_all_tokens_ignore_origins(tmp_path: Path) -> None:
    """With `all`, archives with and without origins give the same sets."""
    for origins in (True, False):
        write_random_archive(tmp_path / f"{origins}.zarr", origins=origins)
    new, old = (find_isns(open_archive(tmp_path / f"{origins}.zarr")) for origins in (True, False))
    np.testing.assert_array_equal(new.sets.rows(0, len(new)), old.sets.rows(0, len(old)))
    assert new.token_facts == old.token_facts
    assert new.tokens.tolist() == old.tokens.tolist()


@pytest.mark.parametrize("population", ["neuron", "expert_neuron", "shared_expert_neuron"])
def test_content_of_moe_archives_equals_numpy(make_moe, population: Any) -> None:  # type: ignore[no-untyped-def]
    """Every population, the experts, pooled counts and single instructions divide by the number of content tokens."""
    archive = make_moe(origins=True, failed=(2,), lengths=(6, 30)).archive
    plain, options = Plain(archive.path), {"counted_tokens": "content"}
    found = find_isns(archive, top=0.1, population=population, **options)  # type: ignore[arg-type]
    for k, expected in enumerate(plain.sets(population, 0.1)):
        assert set(np.flatnonzero(found.mask(k).ravel()).tolist()) == expected
    one = int(plain.complete[3])
    p = activation_frequencies(archive, one, population=population, **options)  # type: ignore[arg-type]
    expected_p = plain.frequencies(one, population).reshape(p.shape)
    np.testing.assert_allclose(p, expected_p, atol=1e-12)
    counts = activation_counts(archive, one, population=population, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(counts, np.rint(expected_p * found.tokens[3]))
    experts = find_ises(archive, **options)  # type: ignore[arg-type]
    for k, index in enumerate(plain.complete.tolist()):
        chosen = plain.column("router/expert", index)
        expected_f = (chosen[..., None] == np.arange(6)).any(axis=2).mean(axis=0)
        np.testing.assert_allclose(experts.frequencies[k], expected_f, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(expert_frequencies(archive, one, **options), experts.frequencies[3])  # type: ignore[arg-type]
    pooled = find_isns(archive, population=population, pool=True, **options).pooled  # type: ignore[arg-type]
    assert pooled is not None
    assert pooled.tokens.sum() == found.tokens.sum()


def test_the_same_tokens_with_other_origins_cannot_be_compared(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """A comparison would cover different tokens of the same prompt; the error names the first id."""
    base, tuned = (make_moe(origins=True).archive for _ in range(2))
    row = int(tuned.instructions.token_start[4])
    tuned = damage(tuned, "token/origin", slice(row, row + 1), 1)
    sides = [find_isns(one, counted_tokens="content") for one in (base, tuned)]
    with pytest.raises(UnsupportedArchiveError, match=r"of 1 instructions differ, the first is 'i004'.*--tokens all"):
        match_instructions(*sides)
    match_instructions(*(find_isns(one) for one in (base, tuned)))
    with pytest.raises(
        UnsupportedArchiveError, match=r"tokens: content only, .* in base, special tokens counted in tun"
    ):
        match_instructions(sides[0], find_isns(tuned))


def test_special_tokens_are_left_out_of_the_content_too(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Both options together leave out the union of rows; each row is counted once."""
    archive = make_moe(origins=True, lengths=(12, 30)).archive
    ids = list(range(0, 1000, 3))
    both = find_isns(archive, counted_tokens="content", special_tokens="leave_out", special_token_ids=ids)
    plain = Plain(archive.path)
    kept = [int((~np.isin(plain.column("token/id", int(k)), ids)).sum()) for k in plain.complete]
    assert both.tokens.tolist() == kept
    rows = both.token_facts.template_rows + both.token_facts.special_rows
    assert sum(kept) + rows == row_spans(archive, "prompt").lengths.sum()


def test_instructions_of_unknown_origin_are_left_out_and_counted(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """One row of unknown origin excludes its instruction; if none is left, the error gives the number excluded."""
    archive = make_moe(origins=True).archive
    for k in (2, 7):
        start = int(archive.instructions.token_start[k])
        archive = damage(archive, "token/origin", slice(start, start + 1), 255)
    spans = counted_rows(archive, Options(counted_tokens="content"))
    assert spans.instruction.tolist() == [k for k in range(10) if k not in (2, 7)]
    assert spans.token_facts.unknown_origin == 2
    archive = damage(archive, "token/origin", slice(None), 255)
    with pytest.raises(IncompleteArchiveError, match=r"content prompt tokens.*10 have tokens of unknown origin"):
        counted_rows(archive, Options(counted_tokens="content"))


@pytest.mark.parametrize(
    ("granularity", "origins", "said"),
    [("count", True, "one mask per token.*granularity='token'"), ("token", False, "lacks token/origin")],
)
def test_archives_without_origins_are_refused_before_the_first_pass(
    tmp_path: Path, granularity: Any, origins: bool, said: str
) -> None:
    """Archives of counts and old archives, as base or tuned: the error names the remedy before any mask is read."""
    write_random_archive(tmp_path / "good.zarr", origins=True)
    write_random_archive(tmp_path / "bad.zarr", origins=origins, granularity=granularity)
    for base, tuned in (("bad", None), ("good", "bad")):
        arguments: dict[str, Any] = {"tuned": None if tuned is None else tmp_path / f"{tuned}.zarr"}
        with pytest.raises(UnsupportedArchiveError, match=f"--tokens content.*{said}"):
            analyze(tmp_path / f"{base}.zarr", counted_tokens="content", **arguments)


def test_invalid_values_are_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """The error names both valid values."""
    with pytest.raises(InvalidInputError, match="must be all or content; it is 'prompt'"):
        find_isns(make_moe().archive, counted_tokens="prompt")  # type: ignore[arg-type]

"""Archives of counts give exactly the same numbers as archives of masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcom_analysis import (
    activation_counts,
    activation_frequencies,
    analyze,
    find_isns,
    write_report,
)
from sparcom_analysis.archive import blocks
from sparcom_analysis.archive.rows import choose_positions
from sparcom_cli.analyze import analyze as command
from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError
from sparcom_data.storage import DurableStore


def both(make_case, *arguments, **options):  # type: ignore[no-untyped-def]
    """An archive of masks and an archive of their counts."""
    return [make_case(*arguments, **options, granularity=kind) for kind in ("token", "count")]


def overwrite(archive, name: str, key, value) -> None:  # type: ignore[no-untyped-def]
    """Change an array without the Archive object."""
    array = zarr.open_group(DurableStore(archive.path), mode="r+", use_consolidated=False)[name]
    array.with_config({"write_empty_chunks": True})[key] = value


@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=3, max_size=8),
    layers=st.integers(1, 3),
    neurons=st.integers(1, 40),
    chunk=st.integers(1, 9),
    block_bytes=st.integers(1, 3000),
    positions=st.sampled_from(["prompt", "response", "all"]),
    rule=st.sampled_from([{"top": 0.05}, {"top": 0.3}, {"min_frequency": 0.4}, {"min_frequency": 1.0}]),
    rates=st.sampled_from([(0.4,), (0.0, 0.3), (1.0, 0.05)]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_counts_give_the_sets_of_masks(
    make_case, lengths, layers, neurons, chunk, block_bytes, positions, rule, rates, seed, data
):  # type: ignore[no-untyped-def]
    """Sets, layers and similarities are equal for any sizes, chunks, blocks, positions, rules and failures."""
    count = len(lengths)
    response = st.lists(st.integers(1, 6), min_size=count, max_size=count)
    options = {
        "layers": layers,
        "neurons": neurons,
        "positions": positions,
        "rates": rates,
        "seed": seed,
        "chunk_instructions": chunk,
        "responses": () if positions == "prompt" else data.draw(response),
        "failed": data.draw(st.sets(st.integers(0, count - 1), max_size=count - 2)),
    }
    masks, counts = both(make_case, lengths, ("ab" * count)[:count], **options)
    one = find_isns(masks.archive, positions=positions, **rule)
    other = find_isns(counts.archive, block_bytes=block_bytes, **rule)
    assert (other.positions, list(other.ids), other.without_rows) == (positions, list(one.ids), one.without_rows)
    for name in ("instruction", "tokens", "minimum_count", "layer_counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one.sets.rows(0, len(one)), other.sets.rows(0, len(other)))
    for (*_, left), (*_, right) in zip(one.pair_blocks(), other.pair_blocks(), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(one.dead_layers, other.dead_layers)


def test_the_analysis_of_counts_is_that_of_masks(make_case, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Numbers and tables are equal; attributes differ in the archive's name, the report in the archive's content."""
    monkeypatch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg></svg>")
    runs, tables = [], []
    for case in both(make_case, (5, 9, 3, 12, 7, 4), "abacab", failed=(4,)):
        runs.append(analyze(case.archive, n_resamples=20, n_permutations=19, equal_length=False))
        text = write_report(runs[-1], tmp_path / case.archive.granularity).read_text(encoding="utf-8")
        assert ("counts over prompt positions" in text) == (case.archive.granularity == "count")
        files = (tmp_path / case.archive.granularity).rglob("*.csv")
        tables.append({path.name: path.read_bytes() for path in files})
    for left, right in zip(runs[0].subtree, runs[1].subtree, strict=True):
        xr.testing.assert_equal(left.dataset, right.dataset)
        if left.path != "/":
            assert left.attrs | {"archive": ""} == right.attrs | {"archive": ""}
    assert tables[0]
    assert tables[0] == tables[1]


def test_the_command_takes_counts(make_case, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """`sparcom analyze` prints the same for both; positions that were not captured raise a one-line error."""
    monkeypatch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg></svg>")
    masks, counts = both(make_case, (5, 9, 3, 12, 7, 4), "abacab", failed=(4,))
    few = ["--no-match-tokens", "--resamples", "20", "--permutations", "19", "--output", str(tmp_path / "out")]
    said = []
    for case in (masks, counts):
        result = CliRunner().invoke(command, [case.archive.path, *few])
        assert result.exit_code == 0, result.output
        said.append(result.stdout)
    assert said[0] == said[1]
    refused = CliRunner().invoke(command, [counts.archive.path, "--positions", "all", "--output", str(tmp_path / "no")])
    assert isinstance(refused.exception, IncompleteArchiveError)


def test_counts_and_frequencies_of_one_instruction(make_case) -> None:  # type: ignore[no-untyped-def]
    """Equation 6 from counts: the stored count, and its fraction of the counted rows."""
    case = make_case((5, 9, 4), "aab", failed=(1,), granularity="count")
    for index in (0, 2):
        assert (activation_counts(case.archive, index) == case.masks[index].sum(axis=0)).all()
        np.testing.assert_array_equal(activation_frequencies(case.archive, index), case.masks[index].mean(axis=0))
    with pytest.raises(IncompleteArchiveError, match=r"'i1' of .* is failed"):
        activation_counts(case.archive, 1)


def test_counts_of_all_positions_are_counts_of_all(make_case) -> None:  # type: ignore[no-untyped-def]
    """Counts cannot be split: `all` works, and prompt or response tokens raise an error with a remedy."""
    masks, counts = both(make_case, (5, 3, 4), "aab", positions="all", responses=(4, 6, 2))
    assert (choose_positions(masks.archive, None), choose_positions(counts.archive, None)) == ("prompt", "all")
    isn, whole = find_isns(counts.archive), find_isns(masks.archive, positions="all")
    assert (isn.positions, whole.positions) == ("all", "all")
    np.testing.assert_array_equal(isn.sets.rows(0, 3), whole.sets.rows(0, 3))
    for positions in ("prompt", "response"):
        message = rf"positions '{positions}' .*which cannot be split. Choose positions 'all', or"
        with pytest.raises(IncompleteArchiveError, match=message):
            find_isns(counts.archive, positions=positions)
    assert (activation_counts(counts.archive, 1, positions="all") == counts.masks[1].sum(axis=0)).all()


@pytest.mark.parametrize(("positions", "other"), [("prompt", "all"), ("prompt", "response"), ("response", "prompt")])
def test_rows_that_were_not_counted_are_refused(make_case, positions: str, other: str) -> None:  # type: ignore[no-untyped-def]
    """Positions that differ from the counted ones raise an error."""
    responses = (2, 2) if positions == "response" else ()
    case = make_case((5, 3), "ab", positions=positions, responses=responses, granularity="count")
    message = rf"positions '{other}' .*positions '{positions}'.*Choose positions '{positions}'"
    with pytest.raises(IncompleteArchiveError, match=message):
        activation_counts(case.archive, 0, positions=other)  # type: ignore[arg-type]


def test_a_response_without_rows_is_left_out(make_case) -> None:  # type: ignore[no-untyped-def]
    """An instruction without counted rows is reported, not compared."""
    case = make_case((5, 3, 4), "abb", positions="response", responses=(4, 6, 0), granularity="count")
    neurons = find_isns(case.archive)
    assert (neurons.positions, neurons.without_rows, list(neurons.ids)) == ("response", 1, ["i0", "i1"])


def test_only_chunks_with_complete_instructions_are_read(make_case) -> None:  # type: ignore[no-untyped-def]
    """A chunk with only failed or pending instructions need not exist."""
    case = make_case((4,) * 9, "aaabbbccc", failed=(2, 3), unfinished=(8,), granularity="count")
    for chunk in (1, 4):
        assert not (Path(case.archive.path) / f"neuron/count/c.{chunk}.0.0").exists()
    assert list(find_isns(case.archive).ids) == ["i0", "i1", "i4", "i5", "i6", "i7"]


def test_blocks_are_bounded(make_case, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """No read exceeds the block size by more than one chunk; none is repeated; progress counts the rows."""
    case = make_case((4,) * 12, "ab" * 6, granularity="count")
    sizes, seen = [], []
    read = blocks.Archive.read_rows

    def watch(archive, name: str, start: int, stop: int):  # type: ignore[no-untyped-def]
        if name == "neuron/count":
            sizes.append(stop - start)
        return read(archive, name, start, stop)

    monkeypatch.setattr(blocks.Archive, "read_rows", watch)
    for block_bytes, expected in ((1, [2] * 6), (4 * 3 * 20 * 4, [4] * 3), (1 << 20, [12])):
        sizes.clear()
        seen.clear()
        find_isns(case.archive, block_bytes=block_bytes, progress=lambda *at: seen.append(at))
        assert sizes == expected
        assert seen == [(rows, 48) for rows in np.cumsum(np.array(sizes) * 4).tolist()]


def test_a_count_above_its_rows_is_damage(make_case) -> None:  # type: ignore[no-untyped-def]
    """The error names the instruction, because ranks would be wrong."""
    case = make_case((5, 6, 7), "aab", granularity="count")
    overwrite(case.archive, "neuron/count", (1, 2, 19), 7)
    for rule in ({"top": 0.1}, {"min_frequency": 0.5}):
        with pytest.raises(DamagedArchiveError, match=r"at most the 6 rows .* one of 'i1' .* is 7"):
            find_isns(open_archive(case.archive.path), **rule)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_sizes_that_contradict_the_attributes_are_damage(make_case) -> None:  # type: ignore[no-untyped-def]
    """A width that contradicts the attributes is found before anything is computed."""
    case = make_case((5, 6, 7), "aab", granularity="count")
    root = zarr.open_group(DurableStore(case.archive.path), mode="r+", use_consolidated=False)
    section = json.loads(json.dumps(root.attrs["sparcom"]))
    section["model"]["neurons"] = 24
    root.attrs["sparcom"] = section
    zarr.consolidate_metadata(DurableStore(case.archive.path))
    with pytest.raises(DamagedArchiveError, match=r"must have shape \(3, 3, 24\) .* it has \(3, 3, 20\)"):
        activation_counts(open_archive(case.archive.path), 0)

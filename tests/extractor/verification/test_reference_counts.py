"""Counts against transformers: equal counts pass, rounding is explained, other differences are found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_data.archive import Archive, open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import Granularity, Positions
from sparcom_data.testing import fill_array, random_attributes, write_random_moe_archive

LENGTHS = (3, 17, 1, 30)
TEXTS = ("a", "b", "", "d")  # the third was given as token ids


@dataclass(frozen=True)
class Pair:
    """An archive of masks and one of counts for the same rows of a tiny model, and the written values."""

    masks: Path
    counts: Path
    ids: list[NDArray[np.int32]]
    truth: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def count(self, truth: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """Return the counts, uint32 (instruction, layer, neuron), of masks, bool (row, layer, neuron)."""
        counts: NDArray[np.uint32] = np.add.reduceat(truth, self.starts, axis=0, dtype=np.uint32)
        return counts

    def write(self, truth: NDArray[np.bool_]) -> None:
        """Replace the values in both archives."""
        fill_array(self.masks, "neuron/active", np.packbits(truth, axis=-1, bitorder="little"))
        fill_array(self.counts, "neuron/count", self.count(truth))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    """Return the reference for the tiny model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers raises their own warnings
        from sparcom_verification.reference.model import ReferenceModel

        config = open_config(model)
        return ReferenceModel(str(model), "float32", list(range(config["num_hidden_layers"])))


def open_config(model: Path) -> dict[str, Any]:
    import json

    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    return config


def make(path: Path, model: Path, granularity: Granularity, positions: Positions = "prompt") -> None:
    """Create an archive of the tiny model's sizes, without values."""
    config = open_config(model)
    most = 0 if positions == "prompt" else 2
    attributes = random_attributes(
        config["num_hidden_layers"],
        config["intermediate_size"],
        granularity=granularity,
        positions=positions,
        max_tokens=most,
    )
    attributes = attributes.model_copy(update={"model": attributes.model.model_copy(update={"id": str(model)})})
    layout = plan_layout(LENGTHS, positions, most)
    columns = InstructionColumns([*"wxyz"], [""] * 4, [""] * 4, TEXTS, [""] * 4)
    create_archive(path, attributes, columns, layout, chunk_instructions=2)


@pytest.fixture
def pair(model: Path, reference: Any, tmp_path: Path) -> Pair:
    rng = np.random.default_rng(3)
    ids = [rng.integers(5, 400, size=length).astype(np.int32) for length in LENGTHS]
    truth = np.concatenate(
        [
            np.stack([(gate > 0).numpy() for gate in (gates.gate for gates in reference.run(tokens).dense)], axis=1)
            for tokens in ids
        ]
    )
    starts = plan_layout(LENGTHS, "prompt", 0).token_start
    made = Pair(tmp_path / "masks.zarr", tmp_path / "counts.zarr", ids, truth, starts)
    make(made.masks, model, "token")
    make(made.counts, model, "count")
    made.write(truth)
    for path in (made.masks, made.counts):
        committer = ArchiveCommitter(path)
        committer.complete(
            [
                CompletedInstruction(index, int(starts[index]), tokens, np.arange(len(tokens), dtype=np.int32))
                for index, tokens in enumerate(ids)
            ]
        )
        committer.close()
    return made


def compare(pair: Pair, reference: Any, indices: tuple[int, ...] = (0, 1, 3)) -> Any:
    from sparcom_verification.reference.comparison import compare_counts

    archive = open_archive(pair.counts)
    return compare_counts(archive, reference, np.array(indices), lambda index: pair.ids[index])


def test_counts_of_the_reference_are_equal(pair: Pair, reference: Any) -> None:
    """Nothing differs if the archive holds the reference's own counts; the totals match the archive."""
    result = compare(pair, reference)
    layers, neurons = pair.truth.shape[1:]
    assert (result.instructions, result.rows) == (3, 50)
    assert (result.counts, result.bits) == (3 * layers * neurons, 50 * layers * neurons)
    assert (result.differing, result.difference, result.unexplained, result.share) == (0, 0, 0, 0.0)


def test_a_wrong_count_is_found(pair: Pair, reference: Any) -> None:
    """Two wrong counts, one too high and one too low, of neurons with gates far from zero, are unexplained."""
    counts = pair.count(pair.truth)
    counts[1, 0, 5] += 1
    counts[3, 1, 7] = max(0, int(counts[3, 1, 7]) - 3) if counts[3, 1, 7] >= 3 else counts[3, 1, 7] + 3
    fill_array(pair.counts, "neuron/count", counts)
    result = compare(pair, reference)
    assert (result.differing, result.difference, result.unexplained) == (2, 4, 2)
    assert result.share == 4 / result.bits


def test_another_instructions_counts_are_found(pair: Pair, reference: Any) -> None:
    """Counts of another instruction are not explained by rounding."""
    fill_array(pair.counts, "neuron/count", pair.count(pair.truth)[[0, 3, 2, 1]])
    result = compare(pair, reference)
    assert result.unexplained > result.counts / 4


@pytest.mark.parametrize(("roundings", "expected"), [(256.0, 1.0), (1e5, None), (1e6, None), (1e12, 0.0)])
def test_counts_are_judged_as_their_bits_are(
    pair: Pair, reference: Any, roundings: float, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit per neuron is flipped. An unexplained count needs an unexplained bit. An unexplained bit gives an
    unexplained count if no other row of the neuron is within the bound."""
    from sparcom_verification import limits
    from sparcom_verification.reference.comparison import compare_masks

    monkeypatch.setattr(limits, "ROUNDINGS", roundings)
    rng = np.random.default_rng(1)
    flipped = pair.truth.copy()
    layers, neurons = flipped.shape[1:]
    rows = pair.starts[1] + rng.integers(0, LENGTHS[1], size=(layers, neurons))
    layer, neuron = np.meshgrid(np.arange(layers), np.arange(neurons), indexing="ij")
    flipped[rows, layer, neuron] ^= True
    pair.write(flipped)
    archive = open_archive(pair.masks)
    bits = compare_masks(archive, reference, np.array([1]), lambda index: pair.ids[index])
    counts = compare(pair, reference, (1,))
    assert bits.differing == counts.differing == counts.difference == layers * neurons
    near = near_zero(reference, pair.ids[1])
    far = ~near[rows - pair.starts[1], layer, neuron]
    assert bits.unexplained == far.sum()
    assert (far & ~near.any(axis=0)).sum() <= counts.unexplained <= far.sum()
    if expected is not None:
        assert counts.unexplained == expected * layers * neurons


def near_zero(reference: Any, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which gates are within the bound, bool (row, layer, neuron), computed with NumPy."""
    from sparcom_verification import limits

    layers = []
    for inputs, gate, weight in ((part.inputs, part.gate, part.weight) for part in reference.run(ids).dense):
        terms = np.abs(inputs.numpy().astype(np.float64)) @ np.abs(weight.numpy().astype(np.float64)).T
        bound = limits.ROUNDINGS * np.finfo(np.float32).eps * terms
        layers.append(np.abs(gate.numpy().astype(np.float64)) <= bound)
    return np.stack(layers, axis=1)


def test_only_instructions_with_a_text_can_be_compared(pair: Pair, model: Path, tmp_path: Path) -> None:
    """Prompts given as token ids are not sampled; counts of responses are refused with the reason."""
    from sparcom_verification.reference.comparison import comparable_instructions, sample_indices

    archive = open_archive(pair.counts)
    assert comparable_instructions(archive).tolist() == [0, 1, 3]
    assert sample_indices(archive, 9).tolist() == [0, 1, 3]
    drawn = {tuple(sample_indices(archive, 2, seed).tolist()) for seed in range(30)}
    assert drawn == {(0, 1), (0, 3), (1, 3)}
    for positions in ("response", "all"):
        make(tmp_path / f"{positions}.zarr", model, "count", positions)
        with pytest.raises(InvalidInputError, match=rf"not stored .*positions='{positions}'"):
            comparable_instructions(open_archive(tmp_path / f"{positions}.zarr"))
    make(tmp_path / "none.zarr", model, "count")
    with pytest.raises(InvalidInputError, match="no complete instruction with one"):
        comparable_instructions(open_archive(tmp_path / "none.zarr"))


def test_counts_of_moe_models_are_refused(tmp_path: Path) -> None:
    """Counts of an MoE model are refused, and the error names the remedy."""
    from sparcom_verification.reference.comparison import comparable_instructions

    write_random_moe_archive(tmp_path / "moe.zarr", granularity="count")
    with pytest.raises(InvalidInputError, match=r"is an MoE model\. .* granularity 'token'"):
        comparable_instructions(open_archive(tmp_path / "moe.zarr"))


def test_another_length_of_the_text_is_refused(pair: Pair, reference: Any) -> None:
    """Without the tokenizer, or with another one, nothing is compared, and the error names the remedy."""
    from sparcom_verification.reference.comparison import compare_counts

    archive: Archive = open_archive(pair.counts)
    with pytest.raises(InvalidInputError, match=r"'x' has 17, but its text gives 0\. .*--no-tokenizer"):
        compare_counts(archive, reference, np.array([1]), lambda _: np.zeros(0, np.int32))


@pytest.mark.parametrize("right", [True, False])
def test_the_command_compares_counts(
    pair: Pair, right: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sparcom verify --reference transformers` prints the totals of counts, and exits with 1 if any are wrong."""
    import sparcom_cli.verify as command
    from sparcom_cli.main import main

    if not right:
        counts = pair.count(pair.truth)
        counts[3, 0, 0] += 1 if counts[3, 0, 0] < LENGTHS[3] else -1
        fill_array(pair.counts, "neuron/count", counts)
    known = dict(zip(TEXTS, pair.ids, strict=True))
    monkeypatch.setattr(command, "_tokenizer", lambda *_: lambda texts: [known[text].tolist() for text in texts])
    arguments = ["sparcom", "verify", str(pair.counts), "--reference", "transformers"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert ended.value.code == (0 if right else 1), said
    layers, neurons = pair.truth.shape[1:]
    assert f"3 instructions, 50 rows, {3 * layers * neurons:,} counts against transformers: " in said
    assert ("0 differ, by 0 in total" if right else "1 differ, by 1 in total") in said
    assert ("1 differing counts are not explained by rounding" in said) is not right

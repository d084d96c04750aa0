"""Routes, weights and neurons of experts against transformers: equal ones pass, ties are told apart, others are found.

What the archives hold comes by another route than the reference's: the input of each FFN of the running model, and
from there on NumPy in float64 with the weights of the checkpoint.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import MoeInfo, Positions
from sparcom_data.testing import fill_array, random_attributes
from sparcom_models import make_tiny_model
from sparcom_models.testing import write_small_tokenizer

LENGTHS = (9, 33, 1)
Array = NDArray[Any]
CONFIGURED = {
    "qwen2-moe": (MoeInfo(layer_ids=[0, 2], experts=60, experts_per_token=4, neurons=112, shared_neurons=176), [1]),
    "qwen3-moe": (MoeInfo(layer_ids=[1], experts=16, experts_per_token=4, neurons=112, shared_neurons=0), [0, 2]),
    "mixtral": (MoeInfo(layer_ids=[0, 1, 2], experts=8, experts_per_token=2, neurons=112, shared_neurons=0), []),
    "olmoe": (MoeInfo(layer_ids=[0, 1, 2], experts=16, experts_per_token=4, neurons=112, shared_neurons=0), []),
    "deepseek-v2": (MoeInfo(layer_ids=[1, 2], experts=16, experts_per_token=4, neurons=112, shared_neurons=224), [0]),
}


class Family:
    """A tiny model as NumPy sees it: the inputs of its FFNs from transformers, everything after from the weights."""

    def __init__(self, architecture: str, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.architecture, self.folder = architecture, folder
        self.moe, self.dense = CONFIGURED[architecture]
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="batched_mm"
        ).eval()
        self._weights = {name: value.double().numpy() for name, value in self._model.state_dict().items()}
        self._shared = "shared_experts" if architecture == "deepseek-v2" else "shared_expert"

    def inputs(self, ids: Array) -> list[Array]:
        """float64 (T, hidden) for each decoder layer."""
        import torch

        seen: list[Array] = []
        handles = [
            layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].double().numpy()))
            for layer in self._model.model.layers
        ]
        with torch.inference_mode():
            self._model(torch.from_numpy(ids.astype(np.int64))[None])
        for handle in handles:
            handle.remove()
        return seen

    def weight(self, layer: int, name: str) -> Array:
        return self._weights[f"model.layers.{layer}.mlp.{name}"]

    def rows(self, ids: Array) -> Rows:
        """What an archive ought to hold of a prompt."""
        inputs = self.inputs(ids)
        routes = [self.route(inputs[layer], layer) for layer in self.moe.layer_ids]
        active = [
            self._routed_masks(inputs[layer], layer, expert)
            for layer, (expert, _) in zip(self.moe.layer_ids, routes, strict=True)
        ]
        return Rows(
            expert=np.stack([expert for expert, _ in routes], axis=1).astype(np.uint16),
            weight=np.stack([weight for _, weight in routes], axis=1).astype(np.float32),
            active=np.stack(active, axis=1),
            shared=self._masks(inputs, self.moe.layer_ids, f"{self._shared}.gate_proj.weight"),
            dense=self._masks(inputs, self.dense, "gate_proj.weight"),
        )

    def _routed_masks(self, inputs: Array, layer: int, expert: Array) -> Array:
        """bool (T, choices, neurons)."""
        weight = self.weight(layer, "experts.gate_up_proj")[:, : self.moe.neurons]
        return np.stack([np.einsum("th,tnh->tn", inputs, weight[column]) > 0 for column in expert.T], axis=1)

    def _masks(self, inputs: list[Array], layers: list[int], name: str) -> Array | None:
        if not layers or f"model.layers.{layers[0]}.mlp.{name}" not in self._weights:
            return None
        return np.stack([inputs[layer] @ self.weight(layer, name).T > 0 for layer in layers], axis=1)

    def route(self, inputs: Array, layer: int) -> tuple[Array, Array]:
        """Ids and weights (T, choices), the largest first."""
        logits = inputs @ self.weight(layer, "gate.weight").T
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        candidates = scores
        if self.architecture == "deepseek-v2":
            best = scores.reshape(len(scores), 4, 4).max(axis=2)
            allowed = best >= np.sort(best, axis=1)[:, -2:-1]
            candidates = np.where(allowed.repeat(4, axis=1), scores, -1)
        expert = np.argsort(-candidates, axis=1)[:, : self.moe.experts_per_token]
        weight = np.take_along_axis(scores, expert, axis=1)
        if self.architecture in ("mixtral", "qwen3-moe"):
            weight = weight / weight.sum(axis=1, keepdims=True)
        return expert, weight * (1.5 if self.architecture == "deepseek-v2" else 1.0)


@dataclass(frozen=True)
class Rows:
    """Values of an archive's arrays, masks not packed: None where there is no such component."""

    expert: Array
    weight: Array
    active: Array
    shared: Array | None
    dense: Array | None

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        names = ("expert", "weight", "active", "shared", "dense")
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        return Rows(**{name: None if rows[0] is None else np.concatenate(rows) for name, rows in columns.items()})

    def write(self, path: Path) -> None:
        fill_array(path, "router/expert", self.expert)
        fill_array(path, "router/weight", self.weight)
        masks = {"expert_neuron": self.active, "shared_expert_neuron": self.shared, "neuron": self.dense}
        for component, values in masks.items():
            if values is not None:
                fill_array(path, f"{component}/active", np.packbits(values, axis=-1, bitorder="little"))


@dataclass(frozen=True)
class Case:
    """An archive of three prompts, the rows written into it, and the reference to compare with."""

    path: Path
    family: Family
    reference: Any
    ids: list[Array]
    rows: Rows

    def compare(self, rows: Rows | None = None) -> Any:
        from sparcom_verification.reference.masks import compare_with_reference

        (rows or self.rows).write(self.path)
        prompts = [*self.ids]
        return compare_with_reference(
            open_archive(self.path), self.reference, np.arange(len(prompts)), lambda index: prompts[index]
        )


def create(path: Path, family: Family, ids: list[Array], positions: Positions = "prompt") -> None:
    """An archive of a family's sizes without values in it, all instructions complete."""
    attributes = random_attributes(len(family.dense), 176 if family.dense else 0, moe=family.moe)
    model = attributes.model.model_copy(update={"id": str(family.folder), "layer_ids": family.dense})
    lengths = [len(tokens) for tokens in ids]
    layout = plan_layout(lengths, positions, 0)
    empty = [""] * len(ids)
    columns = InstructionColumns([str(index) for index in range(len(ids))], empty, empty, empty, empty)
    create_archive(path, attributes.model_copy(update={"model": model}), columns, layout, chunk_tokens=16)
    committer = ArchiveCommitter(path)
    starts = layout.token_start
    committer.complete(
        [
            CompletedInstruction(index, int(starts[index]), tokens, np.arange(len(tokens), dtype=np.int32))
            for index, tokens in enumerate(ids)
        ]
    )
    committer.close()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer on two threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of a family, of 60 tokens, made once."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = write_small_tokenizer(place)
    return lambda architecture: make_tiny_model(architecture, place / architecture, tokenizer=tokenizer).path


def reference_of(family: Family) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers warns of their own matters
        from sparcom_verification.reference.masks import ReferenceModel

        return ReferenceModel(str(family.folder), "float32", family.dense, family.moe)


@pytest.fixture(scope="module")
def case_of(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of a family, made once."""
    made: dict[str, Case] = {}

    def make(architecture: str) -> Case:
        if architecture not in made:
            family = Family(architecture, folder_of(architecture))
            rng = np.random.default_rng(5)
            ids = [rng.integers(3, 60, size=length).astype(np.int32) for length in LENGTHS]
            path = tmp_path_factory.mktemp("cases") / f"{architecture}.zarr"
            create(path, family, ids)
            rows = Rows.joined([family.rows(row) for row in ids])
            made[architecture] = Case(path, family, reference_of(family), ids, rows)
        return made[architecture]

    return make


@pytest.fixture
def case(case_of: Callable[[str], Case]) -> Case:
    """Qwen2-MoE: it has routed, shared and dense neurons."""
    return case_of("qwen2-moe")


@pytest.mark.parametrize("architecture", CONFIGURED)
def test_every_family_agrees_with_numpy(architecture: str, case_of: Callable[[str], Case]) -> None:
    """Ids, weights and bits of routed, shared and dense neurons are those that the checkpoint's weights give."""
    case = case_of(architecture)
    result, moe, tokens = case.compare(), case.family.moe, sum(LENGTHS)
    found = result.experts
    assert (result.instructions, result.rows) == (3, tokens)
    assert (found.routes, found.ties, found.unexplained) == (tokens * len(moe.layer_ids), 0, 0)
    assert (found.weights, found.off_weights) == (found.routes * moe.experts_per_token, 0)
    assert 0 < found.largest_weight < 1e-5
    assert found.experts.bits == found.weights * moe.neurons
    assert found.shared.bits == found.routes * moe.shared_neurons
    assert result.dense.bits == tokens * len(case.family.dense) * 176
    assert result.differing <= 1
    assert result.unexplained == 0
    assert result.bits == found.experts.bits + found.shared.bits + result.dense.bits


def test_the_order_of_a_choice_is_told_and_is_no_fault(case: Case) -> None:
    """A choice listed backwards, weights and masks with it, has the same experts: counted apart, nothing found."""
    rows = replace(
        case.rows,
        expert=case.rows.expert[..., ::-1].copy(),
        weight=case.rows.weight[..., ::-1].copy(),
        active=case.rows.active[:, :, ::-1].copy(),
    )
    result = case.compare(rows)
    assert result.experts.reordered == result.experts.routes == sum(LENGTHS) * 2
    assert (result.experts.unexplained, result.experts.off_weights, result.unexplained) == (0, 0, 0)


def test_masks_that_do_not_follow_their_experts_are_found(case: Case) -> None:
    """Ids and weights listed backwards while the masks are not: the masks are those of other experts."""
    result = case.compare(replace(case.rows, expert=case.rows.expert[..., ::-1], weight=case.rows.weight[..., ::-1]))
    assert result.experts.off_weights == 0
    assert result.experts.experts.unexplained > result.experts.experts.bits / 4


@pytest.mark.parametrize("wrong", [59, 65535, 60])
def test_another_expert_is_found(case: Case, wrong: int) -> None:
    """An id that the router did not choose, one of no expert, and the fill value are unexplained, not ties."""
    expert = case.rows.expert.copy()
    expert[20, 1, 0] = wrong if wrong not in expert[20, 1] else 58
    result = case.compare(replace(case.rows, expert=expert))
    assert (result.experts.ties, result.experts.unexplained, result.experts.off_weights) == (0, 1, 0)
    assert result.experts.weights == result.experts.routes * 4 - 1
    assert result.unexplained == 0


def test_an_expert_named_twice_is_found(case: Case) -> None:
    """A choice that names one expert twice is no choice of the router."""
    expert = case.rows.expert.copy()
    expert[3, 0, 1] = expert[3, 0, 0]
    assert case.compare(replace(case.rows, expert=expert)).experts.unexplained == 1


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_a_weight_that_is_off_is_found(case: Case, wrong: float) -> None:
    """A thousandth too much, or no data: one weight is off, and how far the worst is is told."""
    weight = case.rows.weight.copy()
    weight[7, 1, 2] += wrong
    result = case.compare(replace(case.rows, weight=weight))
    assert result.experts.off_weights == 1
    assert result.experts.unexplained == 0
    assert np.isnan(wrong) == np.isnan(result.experts.largest_weight)


def test_a_weight_that_rounding_moves_is_told_and_not_held_against_the_archive(case: Case) -> None:
    """Beyond the tolerance, within what rounding of the router's logits does: counted apart, and explained."""
    weight = case.rows.weight.copy()
    weight[7, 1, 2] += 1.5e-5
    result = case.compare(replace(case.rows, weight=weight))
    assert (result.experts.apart_weights, result.experts.off_weights) == (1, 0)


@pytest.mark.parametrize("name", ["active", "shared", "dense"])
def test_a_flipped_bit_is_found(case: Case, name: str) -> None:
    """One bit of a neuron far from zero, of a routed, a shared or a dense one, is unexplained."""
    masks = getattr(case.rows, name).copy()
    masks[(12, *[0] * (masks.ndim - 2), slice(None))] ^= True  # all of one row: some are far from zero
    result = case.compare(replace(case.rows, **{name: masks}))
    parts = {"active": result.experts.experts, "shared": result.experts.shared, "dense": result.dense}
    assert parts[name].differing == masks.shape[-1]
    assert parts[name].unexplained > masks.shape[-1] * 0.9
    assert result.differing == masks.shape[-1]


def test_other_tokens_rows_are_found(case: Case) -> None:
    """Rows of another token have other experts, almost everywhere."""
    rows = Rows(**{name: np.roll(getattr(case.rows, name), 1, axis=0) for name in Rows.__dataclass_fields__})
    assert case.compare(rows).experts.unexplained > sum(LENGTHS)


class Tied:
    """Runs a case whose reference scores two experts of a token alike, and has the archive take the other one."""

    def __init__(self, case: Case, row: int, gap: float) -> None:
        import torch

        self.case, self.row = case, row
        block = case.reference._model.model.layers[0].mlp
        inputs = torch.from_numpy(case.family.inputs(case.ids[1])[0][row - LENGTHS[0]]).float()
        router = block.gate.weight.detach()
        logits = router @ inputs
        order = logits.argsort(descending=True)
        self.last, self.next = int(order[3]), int(order[4])
        changed = router.clone()
        changed[self.next] += inputs * (logits[self.last] * (1 - gap) - logits[self.next]) / inputs.square().sum()
        router.copy_(changed)
        self.twin = self._twin(changed)

    def _twin(self, router: Any) -> Rows:
        """Rows of a model that takes the expert which the reference does not, and goes on from there."""
        family = self.case.family
        family._model.model.layers[0].mlp.gate.weight.data.copy_(router)
        family._weights["model.layers.0.mlp.gate.weight"] = router.double().numpy()
        handle = family._model.model.layers[0].mlp.experts.register_forward_pre_hook(self._swap)
        route = family.route
        family.route = lambda inputs, layer: self._swapped(*route(inputs, layer), layer)  # type: ignore[method-assign]
        parts = []
        for index, ids in enumerate(self.case.ids):
            self.prompt = index
            parts.append(family.rows(ids))
        handle.remove()
        family.route = route  # type: ignore[method-assign]
        return Rows.joined(parts)

    def _swap(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, expert, weight = inputs
        return (hidden, self._other(expert.clone()), weight)

    def _swapped(self, expert: Array, weight: Array, layer: int) -> tuple[Array, Array]:
        return (self._other(expert.copy()) if layer == 0 else expert), weight

    def _other(self, expert: Any) -> Any:
        if self.prompt == 1:
            chosen = expert[self.row - LENGTHS[0]]
            chosen[chosen == self.last], chosen[chosen == self.next] = -1, self.last
            chosen[chosen == -1] = self.next
        return expert


@pytest.fixture
def own_case(case_of: Callable[[str], Case], tmp_path: Path) -> Case:
    """A case whose models may be altered."""
    case = case_of("qwen2-moe")
    family = Family("qwen2-moe", case.family.folder)
    create(tmp_path / "a.zarr", family, case.ids)
    return replace(case, family=family, path=tmp_path / "a.zarr", reference=reference_of(family))


def test_a_tie_is_counted_and_followed(own_case: Case) -> None:
    """Where the archive takes the other of two experts that tie, it is a tie, and what follows from it in later layers
    and tokens is compared with a reference that took the same."""
    tied = Tied(own_case, LENGTHS[0] + 4, 5e-6)
    result = own_case.compare(tied.twin)
    assert (result.experts.ties, result.experts.unexplained, result.experts.off_weights) == (1, 0, 0)
    assert result.differing <= 1
    assert result.unexplained == 0


def test_what_follows_from_a_tie_is_no_small_thing(own_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without following, a tie in the first layer would leave many bits of later ones without explanation."""
    from sparcom_verification.reference import experts as reference_experts

    tied = Tied(own_case, LENGTHS[0] + 4, 5e-6)
    follow = reference_experts.Follower.__call__
    monkeypatch.setattr(
        reference_experts.Follower,
        "__call__",
        lambda self, place, choice: (follow(self, place, choice), choice.expert)[1],
    )
    assert own_case.compare(tied.twin).unexplained > 20


def test_what_does_not_tie_is_not_followed(own_case: Case) -> None:
    """The same where the two scores are apart: the choice is unexplained, and so is what follows from it."""
    tied = Tied(own_case, LENGTHS[0] + 4, 1e-2)
    result = own_case.compare(tied.twin)
    assert (result.experts.ties, result.experts.unexplained >= 1) == (0, True)
    assert result.unexplained > 20


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (None, None),
        (
            "expert",
            "1 top-k sets are of experts that the reference's router does not pick; what differs in the layers after "
            "them may follow from that: instruction '0', token 2 (id ",
        ),
        ("weight", "1 weights are off by more than 1e-05"),
        ("active", "differing bits are not explained by rounding"),
    ],
)
def test_the_command_says_it_in_sentences(
    damage: str | None,
    finding: str | None,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`sparcom verify --reference transformers`: a line each on bits, routes and weights; status 1 if one is wrong."""
    from sparcom_cli.main import main

    rows = {name: getattr(case.rows, name).copy() for name in Rows.__dataclass_fields__}
    if damage == "expert":
        rows["expert"][2, 0, 0] = next(number for number in range(60) if number not in rows["expert"][2, 0])
    if damage == "weight":
        rows["weight"][2, 0, 0] += 2e-3
    if damage == "active":
        rows["active"][2, 0, 0] ^= True
    Rows(**rows).write(case.path)
    monkeypatch.setattr(
        sys, "argv", ["sparcom", "verify", str(case.path), "--reference", "transformers", "--no-tokenizer"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert ended.value.code == (0 if finding is None else 1), said
    routed = 86 * 4 * 112 - (112 if damage == "expert" else 0)
    assert f"(dense 7,568, routed {routed:,}, shared 15,136) against transformers: " in said
    assert "86 top-k sets of experts (tokens × layers) against transformers: 0 list" in said
    assert "combine weights against transformers: the worst is off by" in said
    assert finding is None or finding in said


def test_a_few_strays_are_allowed_in_16_bits_only() -> None:
    """One choice in 200 and one weight in 200 pass where the type has 16 bits, one in 50 does not; none in float32."""
    from sparcom_cli.shared.verdicts import judge_masks
    from sparcom_verification.reference.experts import ExpertComparison
    from sparcom_verification.reference.masks import Comparison

    def findings(dtype: str, strays: int) -> list[int]:
        counted = ExpertComparison(dtype, routes=200, unexplained=strays, weights=200, off_weights=strays)
        return [len(check.findings) for check in judge_masks(Comparison(experts=counted), dtype)]

    assert findings("bfloat16", 1) == findings("float16", 1) == findings("float32", 0) == [0, 0, 0]
    assert findings("bfloat16", 4) == findings("float32", 1) == [0, 1, 1]

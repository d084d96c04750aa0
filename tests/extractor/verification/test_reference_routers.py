"""Routers that rank other scores than a softmax: `verify` judges ties by the ranked scores.

The archives are independent of the reference: FFN inputs come from a model without our hooks. Everything after them is
computed with NumPy in float64, with an explicit routing rule per family.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sparcom_cli.shared.verdicts import judge_masks
from sparcom_data.archive import open_archive
from sparcom_data.commit import ArchiveCommitter, CompletedInstruction
from sparcom_data.create import InstructionColumns, create_archive
from sparcom_data.schema.layout import plan_layout
from sparcom_data.schema.metadata import MoeInfo
from sparcom_data.testing import fill_array, random_attributes
from sparcom_models.quiet import hide_progress_bars

Array = NDArray[Any]
Rule = Callable[[Array, Array], tuple[Array, Array]]
LENGTHS = (9, 33, 1)


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def best(ranked: Array, count: int) -> Array:
    return np.argsort(-ranked, axis=1)[:, :count]


def shares(scores: Array, expert: Array) -> Array:
    picked = np.take_along_axis(scores, expert, axis=1)
    return np.asarray(picked / picked.sum(axis=1, keepdims=True))


def by_groups(logits: Array, bias: Array) -> tuple[Array, Array]:
    """Route like DeepSeek-V3: two of four groups by the sum of their two best scores, then four experts."""
    scores = sigmoid(logits)
    ranked = scores + bias
    groups = np.sort(ranked.reshape(-1, 4, 4), axis=2)[:, :, 2:].sum(axis=2)
    taken = np.zeros_like(groups, dtype=bool)
    np.put_along_axis(taken, best(groups, 2), True, axis=1)
    expert = best(np.where(taken.repeat(4, axis=1), ranked, -np.inf), 4)
    return expert, 2.5 * shares(scores, expert)


def by_sigmoid(logits: Array, bias: Array, factor: float = 1.0) -> tuple[Array, Array]:
    scores = sigmoid(logits)
    expert = best(scores + bias, 4)
    return expert, factor * shares(scores, expert)


def by_softmax(logits: Array, bias: Array) -> tuple[Array, Array]:
    scores = softmax(logits)
    expert = best(scores + bias, 4)
    return expert, shares(scores, expert)


def by_logits(logits: Array, _: Array) -> tuple[Array, Array]:
    expert = best(logits, 4)
    return expert, softmax(np.take_along_axis(logits, expert, axis=1))


def by_one_logit(logits: Array, _: Array) -> tuple[Array, Array]:
    expert = best(logits, 1)
    return expert, sigmoid(np.take_along_axis(logits, expert, axis=1))


@dataclass(frozen=True)
class Family:
    """Names of a family's parts in a decoder layer, its layers, and its routing rule."""

    rule: Rule
    block: str = "mlp"
    router: str = "mlp.gate"
    bias: str = "mlp.gate.e_score_correction_bias"
    shared: str = "mlp.shared_experts.gate_proj"
    shared_neurons: int = 112
    dense: tuple[int, ...] = (0,)
    gate: str = "mlp.gate_proj"
    moe: tuple[int, ...] = (1, 2)
    top_k: int = 4


FAMILIES = {
    "deepseek-v3": Family(by_groups),
    "glm4-moe": Family(lambda logits, bias: by_sigmoid(logits, bias, 2.5)),
    "ernie4-5-moe": Family(by_softmax, bias="mlp.gate.moe_statics.e_score_correction_bias"),
    "lfm2-moe": Family(
        by_sigmoid,
        block="feed_forward",
        router="feed_forward.gate",
        bias="feed_forward.expert_bias",
        shared="",
        shared_neurons=0,
        gate="feed_forward.w1",
    ),
    "granitemoe": Family(
        by_logits,
        block="block_sparse_moe",
        router="block_sparse_moe.router",
        bias="",
        shared="",
        shared_neurons=0,
        dense=(),
        moe=(0, 1, 2),
    ),
    "llama4-text": Family(
        by_one_logit,
        block="feed_forward",
        router="feed_forward.router",
        bias="",
        shared="feed_forward.shared_expert.gate_proj",
        dense=(0, 2),
        gate="feed_forward.gate_proj",
        moe=(1,),
        top_k=1,
    ),
}
BIASED = [name for name, family in FAMILIES.items() if family.bias]


@dataclass(frozen=True)
class Rows:
    """Values of an archive's arrays, with unpacked masks; shared and dense are empty if the model has none."""

    expert: Array
    weight: Array
    active: Array
    shared: Array
    dense: Array

    def write(self, path: Path) -> None:
        fill_array(path, "router/expert", self.expert.astype(np.uint16))
        fill_array(path, "router/weight", self.weight.astype(np.float32))
        masks = {"expert_neuron": self.active, "shared_expert_neuron": self.shared, "neuron": self.dense}
        for component, values in masks.items():
            if values.size:
                fill_array(path, f"{component}/active", np.packbits(values, axis=-1, bitorder="little"))


@dataclass
class Case:
    """A tiny model computed with NumPy, and an archive of three prompts."""

    family: Family
    folder: Path
    archive: Path
    ids: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        rng = np.random.default_rng(5)
        self.ids = [rng.integers(3, 60, size=length).astype(np.int32) for length in LENGTHS]
        family = self.family
        self.moe = MoeInfo(
            layer_ids=list(family.moe),
            experts=16,
            experts_per_token=family.top_k,
            neurons=112,
            shared_neurons=family.shared_neurons,
        )
        attributes = random_attributes(len(family.dense), 176 if family.dense else 0, moe=self.moe)
        model = attributes.model.model_copy(update={"id": str(self.folder), "layer_ids": list(family.dense)})
        layout = plan_layout([len(ids) for ids in self.ids], "prompt", 0)
        empty = [""] * len(self.ids)
        columns = InstructionColumns(["a", "b", "c"], empty, empty, empty, empty)
        create_archive(self.archive, attributes.model_copy(update={"model": model}), columns, layout, chunk_tokens=16)
        committer = ArchiveCommitter(self.archive)
        starts = layout.token_start
        committer.complete(
            [
                CompletedInstruction(index, int(starts[index]), ids, np.arange(len(ids), dtype=np.int32))
                for index, ids in enumerate(self.ids)
            ]
        )
        committer.close()

    def weight(self, layer: int, name: str) -> Array:
        """Return a parameter of a decoder layer, float64; empty if the family has no such part."""
        values: Array = self.model.state_dict()[f"model.layers.{layer}.{name}"].double().numpy()
        return values

    def inputs(self, ids: Array) -> list[Array]:
        """Return the FFN inputs of each decoder layer, float64 (T, hidden)."""
        import torch

        seen: list[Array] = []
        blocks = [
            layer.get_submodule(self.family.block if index in self.family.moe else self.family.gate.rpartition(".")[0])
            for index, layer in enumerate(self.model.model.layers)
        ]
        handles = [
            block.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2).double().numpy()))
            for block in blocks
        ]
        with torch.inference_mode():
            self.model(torch.from_numpy(ids.astype(np.int64))[None])
        for handle in handles:
            handle.remove()
        return seen

    def route(self, inputs: Array, layer: int) -> tuple[Array, Array]:
        bias = self.weight(layer, self.family.bias).reshape(-1) if self.family.bias else np.zeros(16)
        return self.family.rule(inputs @ self.weight(layer, f"{self.family.router}.weight").T, bias)

    def rows(self) -> Rows:
        """Return the values that the archive must hold."""
        family = self.family
        inputs = [np.concatenate(layer) for layer in zip(*map(self.inputs, self.ids), strict=True)]
        routes = [self.route(inputs[layer], layer) for layer in family.moe]
        expert = np.stack([one for one, _ in routes], axis=1)
        active = np.stack(
            [self.experts(inputs[layer], layer, expert[:, place]) for place, layer in enumerate(family.moe)], axis=1
        )
        return Rows(
            expert=expert,
            weight=np.stack([one for _, one in routes], axis=1),
            active=active,
            shared=self.masks(inputs, family.moe, family.shared, family.shared_neurons),
            dense=self.masks(inputs, family.dense, family.gate, 176),
        )

    def experts(self, inputs: Array, layer: int, expert: Array) -> Array:
        """Return masks, bool (T, top_k, neurons)."""
        fused = self.weight(layer, f"{self.family.block}.experts.gate_up_proj")
        gate = (fused if fused.shape[1] == 2 * 112 else fused.transpose(0, 2, 1))[:, :112]
        return np.stack([np.einsum("th,tnh->tn", inputs, gate[column]) > 0 for column in expert.T], axis=1)

    def masks(self, inputs: list[Array], layers: tuple[int, ...], name: str, neurons: int) -> Array:
        if not layers or not name:
            return np.zeros(0, dtype=bool)
        gates = [inputs[layer] @ self.weight(layer, f"{name}.weight")[:neurons].T for layer in layers]
        return np.stack(gates, axis=1) > 0

    def reference(self) -> Any:
        from sparcom_verification.reference.model import ReferenceModel

        return ReferenceModel(str(self.folder), "float32", list(self.family.dense), self.moe)

    def compare(self, rows: Rows, reference: Any = None) -> Any:
        from sparcom_verification.reference.comparison import compare_masks

        rows.write(self.archive)
        return compare_masks(
            open_archive(self.archive), reference or self.reference(), np.arange(3), lambda index: self.ids[index]
        )

    def with_experts(self, rows: Rows, layer: int, expert: Array) -> Rows:
        """Return the rows with other experts, and their masks, in one MoE layer."""
        place = self.family.moe.index(layer)
        inputs = np.concatenate([self.inputs(ids)[layer] for ids in self.ids])
        everything, active = rows.expert.copy(), rows.active.copy()
        everything[:, place], active[:, place] = expert, self.experts(inputs, layer, expert)
        return replace(rows, expert=everything, active=active)


@pytest.fixture
def case_of(folder_of: Callable[[str], Path], tmp_path: Path) -> Callable[..., Case]:
    """Return a case; `change` may modify its model before it is read."""

    def make(name: str, change: Callable[[str, Any], None] | None = None) -> Case:
        folder, work = folder_of(name), Path(tempfile.mkdtemp(dir=tmp_path))
        if change:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(folder)
            for key, values in model.state_dict().items():
                change(key, values)
            folder = work / "model"
            with hide_progress_bars():
                model.save_pretrained(folder)
        return Case(FAMILIES[name], folder, work / "a.zarr")

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_every_router_agrees_with_numpy(name: str, case_of: Callable[..., Case]) -> None:
    """Ids, weights and bits of routed, shared and dense neurons match the family's rule."""
    case = case_of(name)
    reference = case.reference()
    assert reference.unjudged == []
    result = case.compare(case.rows(), reference)
    found, tokens = result.experts, sum(LENGTHS)
    assert (found.routes, found.ties, found.unexplained) == (tokens * len(case.family.moe), 0, 0)
    assert (found.weights, found.weights_unexplained) == (found.routes * case.family.top_k, 0)
    assert found.largest_weight_error < 1e-5
    assert (found.experts.bits, found.shared.bits) == (found.weights * 112, found.routes * case.family.shared_neurons)
    assert result.dense.bits == tokens * len(case.family.dense) * 176
    assert result.differing <= 1
    assert result.unexplained == 0


def flat_router(key: str, values: Any) -> None:
    """Make all logits equal except for rounding, so that their softmax ties all experts."""
    if key.endswith(("gate.weight", "router.weight")):
        values.mul_(1e-8)


@pytest.mark.parametrize("name", BIASED)
def test_wrong_experts_are_found_if_the_bias_decides(name: str, case_of: Callable[..., Case]) -> None:
    """With equal logits the softmax ties, but the ranked scores do not. Every wrong set of experts is a finding."""
    case = case_of(name, flat_router)
    rows = case.rows()
    assert case.compare(rows).experts.unexplained == 0
    last = case.family.moe[-1]
    wrong = (rows.expert[:, -1] + 1) % 16  # the last layer, so that no later layer changes
    assert not any(set(one) == set(other) for one, other in zip(wrong, rows.expert[:, -1], strict=True))
    result = case.compare(case.with_experts(rows, last, wrong))
    assert (result.experts.ties, result.experts.unexplained) == (0, sum(LENGTHS))
    routes = judge_masks(result, "float32")[1]
    assert len(routes.findings) == 1
    where = f"instruction 'a', token 0 (id {case.ids[0][0]}), layer {last}"
    assert f"{where}: experts {sorted(wrong[0].tolist())}, " in routes.findings[0]


@pytest.mark.parametrize("name", BIASED)
def test_a_tie_of_ranked_scores_is_followed(name: str, case_of: Callable[..., Case]) -> None:
    """Two experts with tied ranked scores may swap; the reference's router computes the weight of the other."""
    flat = case_of(name, flat_router)
    last = flat.family.moe[-1]
    bias = flat.weight(last, flat.family.bias).reshape(-1)
    picked = flat.route(np.zeros((1, 128)), last)[0][0]
    groups = {number // 4 for number in picked} if name == "deepseek-v3" else set(range(4))
    other = next(number for number in np.argsort(-bias) if number not in picked and number // 4 in groups)

    def tied(key: str, values: Any) -> None:
        flat_router(key, values)
        if key.endswith(f"layers.{last}.{flat.family.bias}"):
            values.view(-1)[int(other)] = values.view(-1)[int(picked[-1])] - 1e-7

    case = case_of(name, tied)
    rows = case.rows()
    swapped = np.where(rows.expert[:, -1] == picked[-1], other, rows.expert[:, -1])
    result = case.compare(case.with_experts(rows, last, swapped))
    assert (result.experts.ties, result.experts.unexplained) == (sum(LENGTHS), 0)
    assert (result.experts.weights_unexplained, result.unexplained) == (0, 0)


def test_a_router_that_hides_its_scores_is_judged_strictly(
    case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no top-k over the experts is seen, nothing is a tie, and `verify` reports that ties cannot be judged."""
    import torch
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

    def sorting(self: Any, hidden: Any) -> Any:
        logits = torch.nn.functional.linear(hidden.view(-1, hidden.shape[-1]), self.weight)
        scores = logits.sigmoid()
        expert = (scores + self.e_score_correction_bias).argsort(dim=-1, descending=True)[:, :4]
        picked = scores.gather(1, expert)
        return logits, 2.5 * picked / picked.sum(dim=-1, keepdim=True), expert

    case = case_of("glm4-moe")
    rows = case.rows()
    monkeypatch.setattr(Glm4MoeTopkRouter, "forward", sorting)
    reference = case.reference()
    assert reference.unjudged == [1, 2]
    result = case.compare(rows, reference)
    assert (result.experts.routes, result.experts.unexplained, result.experts.weights_unexplained) == (86, 0, 0)
    rows.expert[7, 1, 0] = next(number for number in range(16) if number not in rows.expert[7, 1])
    result = case.compare(rows, reference)
    assert (result.experts.ties, result.experts.unexplained) == (0, 1)
    routes = judge_masks(result, "float32")[1]
    assert "Ties in layers [1, 2] cannot be judged" in routes.looked_at
    assert len(routes.findings) == 1

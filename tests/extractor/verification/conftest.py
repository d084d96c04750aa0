"""Archives of tiny MoE models with rows computed by NumPy, for comparisons with transformers.

The rows are independent of the reference: FFN inputs come from a running model, and everything after them is computed
in float64 from the checkpoint's weights.
"""

from __future__ import annotations

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
    """A tiny model: FFN inputs from transformers, everything after them from the weights with NumPy."""

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
        """Return the input of each decoder layer's FFN, float64 (T, hidden)."""
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
        """Return the rows that an archive must hold for a prompt."""
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
        """Return masks, bool (T, top_k, neurons)."""
        weight = self.weight(layer, "experts.gate_up_proj")[:, : self.moe.neurons]
        return np.stack([np.einsum("th,tnh->tn", inputs, weight[column]) > 0 for column in expert.T], axis=1)

    def _masks(self, inputs: list[Array], layers: list[int], name: str) -> Array | None:
        if not layers or f"model.layers.{layers[0]}.mlp.{name}" not in self._weights:
            return None
        return np.stack([inputs[layer] @ self.weight(layer, name).T > 0 for layer in layers], axis=1)

    def route(self, inputs: Array, layer: int) -> tuple[Array, Array]:
        """Return ids and weights, (T, top_k), by descending weight."""
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
    """Values of an archive's arrays, with unpacked masks; None for arrays that the model lacks."""

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
    """An archive of three prompts, its rows, and the reference to compare with."""

    path: Path
    family: Family
    reference: Any
    ids: list[Array]
    rows: Rows

    def compare(self, rows: Rows | None = None) -> Any:
        from sparcom_verification.reference.comparison import compare_masks

        (rows or self.rows).write(self.path)
        prompts = [*self.ids]
        return compare_masks(
            open_archive(self.path), self.reference, np.arange(len(prompts)), lambda index: prompts[index]
        )


def create(path: Path, family: Family, ids: list[Array], positions: Positions = "prompt") -> None:
    """Create an archive of a family's sizes, without values and with all instructions complete."""
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
    """Run small matrix products on one thread, which is faster than two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the tiny model of a family once, with 60 tokens."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = write_small_tokenizer(folder)
    return lambda architecture: make_tiny_model(architecture, folder / architecture, tokenizer=tokenizer).path


def reference_of(family: Family) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers raises their own warnings
        from sparcom_verification.reference.model import ReferenceModel

        return ReferenceModel(str(family.folder), "float32", family.dense, family.moe)


@pytest.fixture(scope="session")
def case_of(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Return a function that makes the case of a family once."""
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
    """Return the case of Qwen2-MoE, which has routed, shared and dense neurons."""
    return case_of("qwen2-moe")


@pytest.fixture
def own_case(case_of: Callable[[str], Case], tmp_path: Path) -> Case:
    """Return a case with models that the test may change."""
    case = case_of("qwen2-moe")
    family = Family("qwen2-moe", case.family.folder)
    create(tmp_path / "a.zarr", family, case.ids)
    return replace(case, family=family, path=tmp_path / "a.zarr", reference=reference_of(family))

"""Run one peer in its own process and environment: from prompts to packed signs of all gates in a synced file.

Needs only torch, NumPy, transformers, and the peer. Standard input has one request per line, as JSON; each is answered
by one line of JSON. Every peer has the same float32 weights, skips the output layer, and packs the signs of a layer as
soon as they are computed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Signs = NDArray[np.uint8]
Peer = Callable[[torch.Tensor, torch.Tensor], Sequence[Signs]]
"""From token ids and attention mask, int64 (prompt, position), to signs per layer, uint8 (prompt, position, byte)."""


def pack(gates: torch.Tensor) -> Signs:
    """Return the signs of gates: neuron i is bit i % 8 of byte i // 8 of the last axis."""
    return np.packbits(gates.numpy() > 0, axis=-1, bitorder="little")


def load_model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def transformers_peer(folder: str) -> Peer:
    """Put forward hooks on the gate projections."""
    model, kept = load_model(folder).model, list[Signs]()
    for layer in model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _module, _inputs, gates: kept.append(pack(gates)))

    def run(ids: torch.Tensor, mask: torch.Tensor) -> Sequence[Signs]:
        kept.clear()
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        return kept

    return run


def nnsight_peer(folder: str) -> Peer:
    """Read the gate projections in a trace."""
    import nnsight

    model = nnsight.NNsight(load_model(folder).model)

    def run(ids: torch.Tensor, mask: torch.Tensor) -> Sequence[Signs]:
        kept: list[Signs] = []
        with model.trace(input_ids=ids, attention_mask=mask, use_cache=False):
            for layer in model.layers:
                kept.append(pack(layer.mlp.gate_proj.output))  # noqa: PERF401  (a trace reads its source)
        return kept

    return run


def transformer_lens_peer(folder: str) -> Peer:
    """Add hooks to the gates of a bridge, which leaves the weights as they are."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, hf_model=load_model(folder), device="cpu")
    layers, kept = model.cfg.n_layers, list[Signs]()

    def keep(gates: torch.Tensor, hook: Any) -> None:  # noqa: ARG001  (the library passes `hook` by name)
        kept.append(pack(gates))

    hooks = [(f"blocks.{layer}.mlp.gate.hook_out", keep) for layer in range(layers)]

    def run(ids: torch.Tensor, mask: torch.Tensor) -> Sequence[Signs]:
        kept.clear()
        model.run_with_hooks(ids, attention_mask=mask, use_cache=False, stop_at_layer=layers, fwd_hooks=hooks)
        return kept

    return run


LIBRARIES = {
    "transformers": transformers_peer,
    "nnsight": nnsight_peer,
    "transformer-lens": transformer_lens_peer,
}


@torch.inference_mode()
def extract(peer: Peer, prompts: Sequence[Sequence[int]], batch: int, path: Path) -> float:
    """Write the signs of all prompts, uint8 (token, layer, byte), in their order. Return the seconds, with the sync.

    batch: prompts per forward pass. Above 1, prompts are sorted by length and padded on the right.
    """
    started = time.perf_counter()
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number])) if batch > 1 else range(len(prompts))
    rows: dict[int, Signs] = {}
    for first in range(0, len(order), batch):
        numbers = order[first : first + batch]
        ids = torch.zeros(len(numbers), max(len(prompts[number]) for number in numbers), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(numbers):
            ids[row, : len(prompts[number])] = torch.tensor(prompts[number])
            mask[row, : len(prompts[number])] = 1
        layers = peer(ids, mask)
        for row, number in enumerate(numbers):
            rows[number] = np.stack([signs[row, : len(prompts[number])] for signs in layers], axis=1)
    with path.open("wb") as file:
        for number in range(len(prompts)):
            file.write(rows[number].data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def main() -> None:
    library, model, prompts_file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    prompts = json.loads(Path(prompts_file).read_text())
    peer = LIBRARIES[library](model)
    print(json.dumps({name: version(name) for name in dict.fromkeys((library, "transformers", "torch"))}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        seconds = extract(peer, prompts, request["batch"], Path(request["path"]))
        print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()

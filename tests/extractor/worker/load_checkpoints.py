"""Load checkpoints that lack a tensor through the worker's loader, in a separate process. For test_loading.py.

    python load_checkpoints.py FOLDER... prints JSON: {folder: {omitted tensor, or "": the loader's refusal or null}}

One tensor of every kind is omitted in turn. Names that differ only in numbers are one kind.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import set_current_vllm_config
from vllm.distributed import destroy_model_parallel, ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs

from sparcom_extractor.worker.loading import CheckedLoader


class Loaded(Exception):  # noqa: N818  it ends the loading where the weights are there, which saves most of its time
    """Carries the loader's refusal, or None."""


class Leaky(CheckedLoader):
    """The worker's loader, for a checkpoint without the tensor `lacks`; the tensor `shortened` lacks a row."""

    lacks = shortened = ""

    def load_weights(self, model: Any, model_config: Any) -> None:
        super().load_weights(model, model_config)
        raise Loaded(model.sparcom_refusal)

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super()._get_weights_iterator(source):
            if name != self.lacks:
                yield name, tensor[:-1] if name == self.shortened else tensor


def refusal(config: Any, *, lacks: str = "", shortened: str = "") -> str | None:
    """Return the loader's refusal, or None."""
    with set_current_vllm_config(config):
        destroy_model_parallel()
        ensure_model_parallel_initialized(1, 1)
        config.compilation_config.static_forward_context.clear()
        loader = Leaky(config.load_config)
        loader.lacks, loader.shortened = lacks, shortened
        try:
            loader.load_model(vllm_config=config, model_config=config.model_config)
        except Loaded as ended:
            found = ended.args[0]
            assert found is None or isinstance(found, str)
            return found
    raise AssertionError("the weights were never loaded")


def kinds(folder: Path) -> list[str]:
    """Return one tensor of every kind, from the middle of its kind."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no mapping
                found.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [names[len(names) // 2] for names in found.values()]


def main() -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as meeting:
        init_distributed_environment(1, 0, f"file://{meeting}/store", 0, "gloo")
        for folder in map(Path, sys.argv[1:]):
            config = EngineArgs(
                model=str(folder), dtype="float32", enforce_eager=True, max_model_len=128, use_tqdm_on_load=False
            ).create_engine_config()
            results[str(folder)] = {"": refusal(config)} | {name: refusal(config, lacks=name) for name in kinds(folder)}
            results[str(folder)]["shortened"] = refusal(config, shortened="model.layers.1.self_attn.o_proj.weight")
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()

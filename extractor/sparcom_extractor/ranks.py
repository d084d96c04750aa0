"""What the processes of one engine say, as one answer.

every rank ─▶ poll ─▶ an instruction is complete when all ranks have it on disk, and failed when one of them has not
                      what they were fed must be the same everywhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparcom_extractor.protocol import DurableInstruction, FailedInstruction, PollReply, WorkerDescription


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

    def merge(self, replies: Sequence[PollReply]) -> PollReply:
        """Return one reply of the same form, from that of every rank."""
        failed = {item.index: item.reason for reply in replies for item in reply.failed}
        completed: list[DurableInstruction] = []
        for item in (item for reply in replies for item in reply.completed):
            index = item.index
            heard = self._heard.setdefault(index, _Heard(0, item.ids, item.positions))
            heard.ranks += 1
            if (heard.ids, heard.positions) != (item.ids, item.positions):
                failed[index] = (
                    "all processes of an engine must be fed the same tokens; their token ids differ. The masks are not "
                    "to be used: report this with the model and vLLM version"
                )
            elif heard.ranks == len(replies):
                completed.append(item)
        fresh = {index: reason for index, reason in failed.items() if index not in self._failed}
        self._failed |= fresh.keys()
        completed = [item for item in completed if item.index not in self._failed]
        for index in [*fresh, *(item.index for item in completed)]:
            self._heard.pop(index, None)
        return PollReply(
            completed=tuple(completed),
            failed=tuple(FailedInstruction(index, reason) for index, reason in fresh.items()),
            error=next((reply.error for reply in replies if reply.error), None),
            drained=all(reply.drained for reply in replies),
            backpressure_seconds=max(reply.backpressure_seconds for reply in replies),
            rows=max(reply.rows for reply in replies),
        )


def merge_descriptions(described: Sequence[WorkerDescription]) -> WorkerDescription:
    """Return what the processes of an engine capture together, or a refusal if their layers differ."""
    refusal = next((item.refusal for item in described if item.refusal is not None), None)
    if refusal is not None:
        return WorkerDescription(refusal=refusal)
    facts = [_facts(item) for item in described]
    for name in facts[0]:
        values = {item[name] for item in facts} - {None}
        if len(values) > 1:
            reason = f"layers must be alike in all processes of an engine; {name} is {sorted(values, key=str)}"
            return WorkerDescription(refusal=reason)
    moe = [item.moe for item in described if item.moe]
    moe_ids = sorted({layer for item in moe for layer in item.layer_ids})
    return replace(
        described[0],
        layer_ids=tuple(sorted({layer for item in described for layer in item.layer_ids})),
        neurons=max(item.neurons for item in described),
        moe=moe[0].model_copy(update={"layer_ids": moe_ids}) if moe else None,
        memory={name: max(item.memory.get(name, 0) for item in described) for name in described[0].memory},
    )


def _facts(described: WorkerDescription) -> dict[str, int | None]:
    """Return what must be the same in every process that has such layers; None where it has none."""
    moe = dict(described.moe or {})
    facts = {f"moe {name}": moe.get(name) for name in ("experts", "experts_per_token", "neurons", "shared_neurons")}
    return facts | {"neurons": described.neurons or None}

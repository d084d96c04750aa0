"""Merge messages from the workers of one engine.

An instruction is complete once all ranks have it on disk, and failed once it failed on any rank. All ranks must
receive the same tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from sparcom_extractor.protocol import DurableInstruction, FailedInstruction, PollReply, WorkerDescription


class RankReplies:
    """Merges the poll replies of one session."""

    def __init__(self) -> None:
        self._durable: dict[int, list[DurableInstruction]] = defaultdict(list)  # by index, one per rank so far
        self._failed: set[int] = set()

    def merge(self, replies: Sequence[PollReply]) -> PollReply:
        """Merge the replies of all ranks into one."""
        failed = {item.index: item.reason for reply in replies for item in reply.failed}
        completed = []
        for item in (item for reply in replies for item in reply.completed):
            durable = self._durable[item.index]
            durable.append(item)
            if item != durable[0]:
                failed[item.index] = (
                    "all workers of an engine must receive the same tokens; their token ids differ. Do not use these "
                    "masks, and report the model and vLLM version"
                )
            elif len(durable) == len(replies):
                completed.append(item)
        fresh = {index: reason for index, reason in failed.items() if index not in self._failed}
        self._failed |= fresh.keys()
        completed = [item for item in completed if item.index not in self._failed]
        for index in [*fresh, *(item.index for item in completed)]:
            self._durable.pop(index, None)
        return PollReply(
            completed=tuple(completed),
            failed=tuple(FailedInstruction(index, reason) for index, reason in fresh.items()),
            error=next((reply.error for reply in replies if reply.error), None),
            drained=all(reply.drained for reply in replies),
            backpressure_seconds=max(reply.backpressure_seconds for reply in replies),
            rows=max(reply.rows for reply in replies),
            read_backs=sum(reply.read_backs for reply in replies),
            written_bytes=sum(reply.written_bytes for reply in replies),
        )


def merge_descriptions(described: Sequence[WorkerDescription]) -> WorkerDescription:
    """Merge the descriptions of all workers; return a refusal if one refuses or their layer widths differ."""
    for item in described:
        if item.refusal is not None:
            return WorkerDescription(refusal=item.refusal)
    moe = [item.moe for item in described if item.moe]
    names = ("experts", "experts_per_token", "neurons", "shared_neurons")
    widths = {f"moe {name}": {getattr(item, name) for item in moe} for name in names}
    widths["neurons"] = {item.neurons for item in described if item.neurons}
    for name, values in widths.items():
        if len(values) > 1:
            reason = f"all workers of an engine must have layers of the same widths; {name} is {sorted(values)}"
            return WorkerDescription(refusal=reason)
    moe_ids = sorted({layer for item in moe for layer in item.layer_ids})
    return replace(
        described[0],
        layer_ids=tuple(sorted({layer for item in described for layer in item.layer_ids})),
        neurons=max(item.neurons for item in described),
        moe=moe[0].model_copy(update={"layer_ids": moe_ids}) if moe else None,
        memory={name: max(item.memory.get(name, 0) for item in described) for name in described[0].memory},
    )

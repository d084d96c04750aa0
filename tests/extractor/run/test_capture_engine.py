"""Capture and counting in a real vLLM engine: the right bits in the right rows, whatever the scheduler does.

One file, so that tests of masks and of counts share their engines.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from engine_checks import (
    ALLOWED_SHARE,
    SETTINGS,
    assert_right,
    assert_same_rows,
    assert_slices_of,
    rows_of,
    tokenizer_of,
)

from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import ArchiveExistsError, EngineError, InvalidInputError, StorageError
from sparcom_data.instructions import Instruction
from sparcom_data.schema import State
from sparcom_data.verify import verify_archive
from sparcom_extractor.prompts import load_tokenizer
from sparcom_verification.reference.comparison import compare_masks
from sparcom_verification.reference.model import ReferenceModel

pytestmark = pytest.mark.engine


@pytest.fixture
def crowded_engine(
    start_engine: Callable[..., Any], tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Start a tiny LLaMA with too little KV cache for all sequences: it preempts. Tests can inject faults into its
    model."""
    monkeypatch.setattr("sparcom_extractor.launch.start.worker_class", lambda _: "faulty_worker.FaultyWorker")
    return start_engine(tiny_model("llama"), **SETTINGS, kv_cache_gib=0.00095)


def test_concurrent_rows_are_those_of_each_request_alone(
    tiny_engine: Any, tiny_model: Callable[[str], Path], mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """With chunked prefill and mixed batches, every request has the rows that it has alone, and those of
    transformers."""
    together = tiny_engine.extract(mixed_instructions, tmp_path / "together.zarr")
    assert_right(together, tiny_engine, tiny_model("llama"), sample=24)
    alone = tiny_engine.extract_alone(mixed_instructions, tmp_path / "alone.zarr")
    lengths = together.instructions.prompt_length
    assert lengths.max() > 64, "some prompts must be split into several steps"
    assert lengths.min() < 8, "some prompts must share a step"
    assert_same_rows(together, alone)


@pytest.mark.parametrize("positions", ["response", "all"])
def test_response_rows_agree_with_transformers(
    positions: str,
    tiny_engine: Any,
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """Generated tokens have rows too, except the last, which is never fed to the model."""
    archive = tiny_engine.extract(mixed_instructions, tmp_path / "a.zarr", positions=positions, max_tokens=9)
    table = archive.instructions
    generated = table.token_length - (table.prompt_length if positions == "all" else 0)
    assert generated.max() == 8
    assert all(archive.strings("response"))
    assert [check.findings for check in verify_archive(archive, tokenizer_of(tiny_engine)) if not check.passed] == []
    reference = ReferenceModel(str(tiny_model("llama")), "float32", archive.attributes.model.layer_ids)
    texts = archive.strings("text")
    result = compare_masks(
        archive,
        reference,
        archive.instructions.complete,
        lambda index: np.array(tiny_engine.engine.tokenizer(texts[index])["input_ids"], dtype=np.int32),
    )
    assert result.rows == table.token_length.sum()
    assert result.differing <= max(1.0, ALLOWED_SHARE * result.bits)


def test_rows_past_the_end_of_a_request_hold_no_data(
    tiny_engine: Any, demo_instructions: list[Instruction], tmp_path: Path
) -> None:
    """Reserved rows without a response token are zero and have no token id, even if a step ran past the end."""
    archive = tiny_engine.extract(demo_instructions[:8], tmp_path / "a.zarr", positions="all", max_tokens=5)
    table = archive.instructions
    for index in range(len(table)):
        end = int(table.token_start[index] + table.token_length[index])
        stop = int(table.token_start[index] + table.prompt_length[index]) + 5
        assert end < stop
        assert not archive.read_active(end, stop).any()
        assert (archive.read_tokens(end, stop)[0] == -1).all()


def test_only_a_prompt_longer_than_the_context_fails(tiny_engine: Any, tmp_path: Path) -> None:
    """A prompt that does not fit fails with the rule and both lengths; the others run."""
    instructions = [
        Instruction(id="long", text="word " * 400),
        Instruction(id="fits", token_ids=tuple(range(10, 10 + 319))),
        Instruction(id="over", token_ids=tuple(range(10, 10 + 320))),
        Instruction(id="short", text="Two words"),
    ]
    extraction = tiny_engine.prepare(instructions, tmp_path / "a.zarr")
    progress = tiny_engine.run(extraction)
    assert (progress.complete, progress.failed) == (2, 2)
    archive = open_archive(tmp_path / "a.zarr")
    assert archive.instructions.state.tolist() == [State.FAILED, State.COMPLETE, State.FAILED, State.COMPLETE]
    assert archive.strings("error")[0].startswith("a prompt may have at most 319 tokens")
    assert "this one has 320" in archive.strings("error")[2]
    assert archive.attributes.state == "complete"


def test_token_ids_are_run_unchanged(tiny_engine: Any, tmp_path: Path) -> None:
    """An instruction of token ids has exactly these ids in the archive, and no text."""
    ids = (5, 1000, 42, 42, 7)
    archive = tiny_engine.extract([Instruction(id="a", token_ids=ids)], tmp_path / "a.zarr")
    assert rows_of(archive, 0)[0].tolist() == list(ids)
    assert archive.strings("text") == [""]


def test_only_prompts_with_tokens_that_the_model_lacks_fail(
    tiny_engine: Any, demo_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a tokenizer extended without its model, vLLM would read padding rows or crash. The other instructions
    run."""
    extended = load_tokenizer(str(demo_model))
    extended.add_tokens(["<new>"])
    monkeypatch.setattr(type(tiny_engine.engine), "tokenizer", property(lambda _: extended))
    size = tiny_engine.engine.vocabulary
    assert len(extended) == size + 1
    instructions = [
        Instruction(id="text", text="What does <new> mean?"),
        Instruction(id="ids", token_ids=(5, size)),
        Instruction(id="last", token_ids=(5, size - 1)),
        Instruction(id="plain", text="Two words"),
    ]
    progress = tiny_engine.run(tiny_engine.prepare(instructions, tmp_path / "a.zarr"))
    assert (progress.complete, progress.failed) == (2, 2)
    archive = open_archive(tmp_path / "a.zarr")
    assert archive.instructions.state.tolist() == [State.FAILED, State.FAILED, State.COMPLETE, State.COMPLETE]
    for error in archive.strings("error")[:2]:
        assert error.startswith(f"token ids must be below the size of the model's vocabulary, {size}; the largest is")


def test_chat_format_applies_the_template(tiny_engine: Any, tmp_path: Path) -> None:
    """In chat format the text is the template's output; a plain text is one user turn."""
    archive = tiny_engine.extract([Instruction(id="a", text="Hello there")], tmp_path / "a.zarr", prompt_format="chat")
    text = archive.strings("text")[0]
    assert "<|im_start|>user\nHello there<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")
    ids, origin = (np.asarray(zarr.open_group(archive.path, mode="r")[f"token/{name}"]) for name in ("id", "origin"))
    assert tiny_engine.engine.tokenizer.decode(ids[origin == 0]) == "Hello there"
    assert set(origin.tolist()) == {0, 1}
    assert [check.findings for check in verify_archive(archive, tokenizer_of(tiny_engine)) if not check.passed] == []


def test_a_cancelled_extraction_keeps_what_is_complete(
    tiny_engine: Any, demo_instructions: list[Instruction], tmp_path: Path
) -> None:
    """After a cancellation every instruction is complete or cancelled, and complete ones are right."""
    many = [item.model_copy(update={"id": f"{copy}-{item.id}"}) for copy in range(4) for item in demo_instructions]
    extraction = tiny_engine.prepare(many, tmp_path / "a.zarr")
    progress = tiny_engine.run(extraction, lambda snapshot: extraction.cancel() if snapshot.complete else None)
    assert progress.complete
    assert progress.cancelled
    assert progress.complete + progress.cancelled == len(many)
    archive = open_archive(tmp_path / "a.zarr")
    assert set(archive.instructions.state.tolist()) == {State.COMPLETE, State.CANCELLED}
    assert [check.findings for check in verify_archive(archive, tokenizer_of(tiny_engine)) if not check.passed] == []


def test_bad_input_leaves_nothing_behind(tiny_engine: Any, tmp_path: Path) -> None:
    """An empty batch, duplicate ids, messages in raw format or an existing archive are refused before anything is
    created."""
    with pytest.raises(InvalidInputError, match="must not be empty"):
        tiny_engine.prepare([], tmp_path / "a.zarr")
    twice = [Instruction(id="a", text="x"), Instruction(id="a", text="y")]
    with pytest.raises(InvalidInputError, match="'a' occurs 2 times"):
        tiny_engine.prepare(twice, tmp_path / "a.zarr")
    chat = Instruction.model_validate({"id": "a", "messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(InvalidInputError, match="messages need prompt_format 'chat'"):
        tiny_engine.prepare([chat], tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ArchiveExistsError, match="must have a new name"):
        tiny_engine.prepare(twice[:1], tmp_path / "a.zarr")


def test_preempted_requests_keep_their_rows(
    crowded_engine: Any, tiny_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """vLLM recomputes the tokens of a preempted request; its rows equal those of an undisturbed run."""
    options = {"positions": "all", "max_tokens": 60}
    extraction = crowded_engine.prepare(mixed_instructions, tmp_path / "a.zarr", **options)
    assert crowded_engine.run(extraction).complete == len(mixed_instructions)
    crowded = open_archive(tmp_path / "a.zarr")
    assert extraction.rows_captured > int(crowded.instructions.token_length.sum()), "nothing was preempted"
    assert_same_rows(crowded, tiny_engine.extract(mixed_instructions, tmp_path / "b.zarr", **options))


def counted(masks: Archive) -> Any:
    """Return sums over the masks of each instruction, uint32 (instruction, layer, neuron)."""
    table = masks.instructions
    sums = np.zeros((len(table), masks.layers, masks.neurons), dtype=np.uint32)
    for index in range(len(table)):
        start, stop = int(table.token_start[index]), int(table.token_start[index] + table.token_length[index])
        bits = np.unpackbits(masks.read_active(start, stop), axis=-1, bitorder="little")[..., : masks.neurons]
        sums[index] = bits.sum(axis=0, dtype=np.uint32)
    return sums


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_counts_are_sums_of_the_masks(
    positions: str, tiny_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """With chunked prefill, mixed batches and generated tokens, each count is the sum of the instruction's masks."""
    options = {"positions": positions, "max_tokens": 0 if positions == "prompt" else 7}
    masks = tiny_engine.extract(mixed_instructions, tmp_path / "masks.zarr", **options)
    counts = tiny_engine.extract(mixed_instructions, tmp_path / "counts.zarr", granularity="count", **options)
    assert counts.granularity == "count"
    assert counts.instructions.token_length.tolist() == masks.instructions.token_length.tolist()
    assert [check.findings for check in verify_archive(counts, None) if not check.passed] == []
    expected = counted(masks)
    differing = np.abs(counts.read_counts(0, len(mixed_instructions)).astype(np.int64) - expected).sum()
    bits = int(masks.instructions.token_length.sum()) * masks.layers * masks.neurons
    assert differing <= max(1.0, ALLOWED_SHARE * bits), f"{differing} of {bits} bits"
    assert expected.any()


def test_counts_after_preemptions(crowded_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path) -> None:
    """With too little KV cache, requests are preempted and recomputed; each row counts once."""
    engine = crowded_engine
    options = {"positions": "all", "max_tokens": 60}
    masks = engine.extract(mixed_instructions, tmp_path / "masks.zarr", **options)
    extraction = engine.prepare(mixed_instructions, tmp_path / "counts.zarr", granularity="count", **options)
    progress = engine.run(extraction)
    assert progress.complete == len(mixed_instructions)
    assert extraction.rows_captured > progress.tokens_done, "something must have been computed twice"
    counts = open_archive(tmp_path / "counts.zarr").read_counts(0, len(mixed_instructions))
    expected = counted(masks)
    bits = int(masks.instructions.token_length.sum()) * masks.layers * masks.neurons
    assert np.abs(counts.astype(np.int64) - expected).sum() <= max(1.0, ALLOWED_SHARE * bits)


def generate(engine: Any, prompts: Sequence[Sequence[int]], plan: Callable[[int], Any] = lambda _: None) -> Any:
    """Return token ids of greedy generation through the engine's own interface, all prompts at once."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, ids: Sequence[int]) -> list[int]:
        sampling = SamplingParams(
            max_tokens=24,
            temperature=0.0,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=plan(number),
        )
        prompt = {"type": "token", "prompt_token_ids": list(ids)}
        result = [output async for output in engine.engine.llm.generate(prompt, sampling, request_id=f"plain-{number}")]
        return list(result[-1].outputs[0].token_ids)

    async def all_of_them() -> list[list[int]]:
        return list(await asyncio.gather(*(one(number, ids) for number, ids in enumerate(prompts))))

    return engine.loop.run(all_of_them())


@pytest.mark.slow
def test_capture_changes_no_token(
    start_engine: Callable[..., Any],
    tiny_engine: Any,
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
) -> None:
    """An engine generates the same tokens with and without capture."""
    plain = start_engine(tiny_model("llama"), capture=False, **SETTINGS)
    prompts = [plain.engine.tokenizer(item.text)["input_ids"][:200] for item in mixed_instructions[:12]]
    expected = generate(plain, prompts)
    assert generate(tiny_engine, prompts) == expected
    assert len({tuple(tokens) for tokens in expected}) > 6, "the prompts must not all be answered alike"


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(
    start_engine: Callable[..., Any],
    tiny_engine: Any,
    tiny_model: Callable[[str], Path],
    mixed_instructions: list[Instruction],
    tmp_path: Path,
) -> None:
    """With tensor parallelism over two workers, each writes its slice of the neurons."""
    two_ranks = start_engine(tiny_model("llama"), **SETTINGS, tensor_parallel_size=2)
    one = tiny_engine.extract(mixed_instructions, tmp_path / "one.zarr")
    assert_slices_of(two_ranks.extract(mixed_instructions, tmp_path / "two.zarr"), one)


def test_faults_of_a_model_are_never_recorded_as_masks(
    crowded_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """A weight that is NaN or infinite, and a layer that runs twice per step, are named for masks and counts. The
    engine runs on. At start-up, the dummy batch would refuse the model."""
    engine = crowded_engine
    call, some = lambda *arguments: engine.loop.run(engine.engine.call_workers(*arguments))[0], mixed_instructions[:6]
    call("faulty_loop", 2)
    with pytest.raises(EngineError, match=r"layer 1 wrote 2 times, .* The model runs a layer several times per token"):
        engine.run(engine.prepare(some, tmp_path / "loop.zarr"))
    assert set(open_archive(tmp_path / "loop.zarr").instructions.state.tolist()) == {int(State.PENDING)}
    assert call("sparcom_describe")["refusal"] is None, "the dummy batch has one row"
    call("faulty_loop", 1)
    assert "layer 1 wrote 2 times, 2 rows" in call("sparcom_describe")["refusal"]
    call("faulty_loop", 1 << 30)
    engine.extract(some, tmp_path / "healthy.zarr")
    for number, (value, granularity) in enumerate([(np.nan, "token"), (np.nan, "count"), (np.inf, "token")]):
        before = call("faulty_weight", float(value))
        path = tmp_path / f"{number}.zarr"
        progress = engine.run(engine.prepare(some, path, granularity=granularity))
        call("faulty_weight", before)
        table = open_archive(path).instructions
        assert (progress.failed, set(table.state.tolist())) == (len(some), {int(State.FAILED)})
        reasons = open_archive(path).strings("error")
        assert all("layer 1 has gates that are NaN or infinite at position" in reason for reason in reasons), reasons
        assert "at position 0 of the prompt, and in 1 more" in reasons[0]


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_an_archive_of_another_job_is_not_touched(
    when: str, tiny_engine: Any, mixed_instructions: list[Instruction], tmp_path: Path
) -> None:
    """A job's archive is removed and replaced by another job's of the same name, before or during the run. The job ends
    with the reason, the other archive keeps its bytes, and the engine runs the next job."""
    path = tmp_path / "m3.zarr"
    first, other = tiny_engine.prepare(mixed_instructions, path), list[Any]()

    def replace(_: Any = None) -> None:
        if not other:
            shutil.rmtree(path)
            other.append(tiny_engine.prepare(mixed_instructions[:3], path))
            other.append({file: file.read_bytes() for file in path.rglob("*") if file.is_file()})

    if when == "waiting":
        replace()
    with pytest.raises(StorageError, match=r"m3\.zarr"):
        tiny_engine.run(first, replace)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == other[1]
    assert tiny_engine.run(other[0]).complete == 3
    assert [check.findings for check in verify_archive(open_archive(path), tokenizer_of(tiny_engine))] == [[]] * 6

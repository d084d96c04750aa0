"""The origin of each prompt token (content, template or special) is checked against the text, character by
character."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema import Origin
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.testing import random_attributes
from sparcom_extractor.origins import prompt_warnings
from sparcom_extractor.preparation import prepare_extraction
from sparcom_extractor.prompts import Prompt, load_tokenizer, make_prompts

CONTENT, TEMPLATE, SPECIAL, RESPONSE, UNKNOWN = (int(origin) for origin in Origin)
BOS = 1  # `<|im_start|>` of the demo model

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
STRIPPED = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
MOVED = """{%- set last = messages | last -%}
{%- for m in messages[1:-1] %}<{{ m.role }}>{{ m.content }}{% endfor %}<user>{{ messages[0].content }}

{{ last.content }}"""  # the system turn moves into the last turn, as in Mistral's templates
TWICE = "{{ messages[0].content }} means: {{ messages[0].content.strip() }}"
UPPER = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}{% endfor %}"
LENGTH = "{% for m in messages %}{{ m.content }} has {{ m.content | length }} letters{% endfor %}"
LONGER = "{% for m in messages %}{{ m.content }}{% if m.content | length < 20 %} Please.{% endif %}{% endfor %}"
REFUSES = "{% for m in messages %}{% if m.content | length > 30 %}{{ raise_exception('too long') }}{% endif %}\
{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return load_tokenizer(str(demo_model))


def templated(tokenizer: Any, template: str) -> Any:
    """Return the same tokenizer with another chat template."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def adding(tokenizer: Any) -> Any:
    """Return the same tokenizer, which adds BOS to every text."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS)]
    )
    return changed


def chat(tokenizer: Any, *turns: tuple[str, str]) -> Prompt:
    """Return one conversation as a prompt."""
    messages = [{"role": role, "content": content} for role, content in turns]
    item = Instruction.model_validate({"id": "i0", "messages": messages})
    return make_prompts(tokenizer, [item], ExtractionOptions(prompt_format="chat"), 4096)[0]


def raw(tokenizer: Any, *items: dict[str, Any], **options: Any) -> list[Prompt]:
    instructions = [Instruction.model_validate({"id": f"i{n}", **item}) for n, item in enumerate(items)]
    return make_prompts(tokenizer, instructions, ExtractionOptions(**options), 4096)


def expected_origin(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Compute origins by hand: tokens in a span are content, special ids are special, all others template."""
    inside = {place for start, stop in spans for place in range(start, stop)}
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        TEMPLATE if inside.isdisjoint(range(*offsets)) else SPECIAL if token in tokenizer.all_special_ids else CONTENT
        for token, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
    | st.sampled_from(["Hi", "  two spaces\n", "🧬é", "user", "<|im_end|>", "system\nYou are", "\n\nassistant\n"])
)
def test_any_content_of_a_chat_is_found(tokenizer: Any, content: str) -> None:
    """Any content is found, even if it repeats words of the demo template."""
    prompt = chat(tokenizer, ("user", content))
    start = len(tokenizer.apply_chat_template([{"role": "user", "content": "X"}], tokenize=False).split("X")[0])
    assert prompt.text[start : start + len(content)] == content
    assert prompt.origin.tolist() == expected_origin(tokenizer, prompt.text, [(start, start + len(content))])
    assert (prompt.origin.dtype, prompt.origin.shape) == (np.uint8, prompt.ids.shape)


def test_only_message_contents_are_content(tokenizer: Any) -> None:
    """Messages are content, system turns included; a system turn that the template adds is not."""
    alone = chat(tokenizer, ("user", "One plus one?"))
    assert tokenizer.decode(alone.ids[alone.origin == CONTENT]) == "One plus one?"
    assert "helpful" in tokenizer.decode(alone.ids[alone.origin == TEMPLATE])
    several = chat(tokenizer, ("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?"))
    assert tokenizer.decode(several.ids[several.origin == CONTENT]) == "Be brief.One?Two.Three?"
    assert set(several.origin.tolist()) == {CONTENT, TEMPLATE}


@pytest.mark.parametrize(
    ("template", "turns", "content"),
    [
        (PLAIN, [("user", " a b"), ("assistant", "c"), ("user", "d")], " a bcd"),
        (STRIPPED, [("user", "\n alpha beta \n"), ("user", "gamma")], " alpha beta gamma"),
        (MOVED, [("system", "be kind"), ("user", "x"), ("assistant", "y"), ("user", "z")], "xybe kindz"),
        (TWICE, [("user", " same")], " same same"),
    ],
)
def test_templates_that_strip_move_or_repeat_are_supported(
    tokenizer: Any, template: str, turns: list[tuple[str, str]], content: str
) -> None:
    """Contents may be stripped, reordered or repeated; literals and contents together make up the text."""
    prompt = chat(templated(tokenizer, template), *turns)
    assert tokenizer.decode(prompt.ids[prompt.origin == CONTENT]).replace(" ", "") == content.replace(" ", "")
    assert set(prompt.origin.tolist()) <= {CONTENT, TEMPLATE}


@pytest.mark.parametrize("template", [UPPER, LENGTH, LONGER, REFUSES])
def test_unproven_origins_are_unknown(tokenizer: Any, template: str) -> None:
    """If a template depends on the content, or rejects the markers, no token of the prompt gets a guessed origin."""
    prompt = chat(templated(tokenizer, template), ("user", "so it is"))
    assert prompt.origin.tolist() == [UNKNOWN] * len(prompt.ids)


def test_special_tokens_of_raw_prompts_are_found(tokenizer: Any) -> None:
    """BOS that the tokenizer adds, and special ids in texts and given ids, are special; the rest is content."""
    added, spelled, given_ids = raw(
        adding(tokenizer), {"text": "a b"}, {"text": "x<|im_end|>"}, {"token_ids": (BOS, 500, 2, 501)}
    )
    assert added.origin.tolist() == [SPECIAL, CONTENT, CONTENT]
    assert spelled.origin.tolist() == [SPECIAL, CONTENT, SPECIAL]
    assert given_ids.origin.tolist() == [SPECIAL, CONTENT, SPECIAL, CONTENT]
    assert raw(tokenizer, {"text": "a b"})[0].origin.tolist() == [CONTENT, CONTENT]
    word = copy.deepcopy(tokenizer)
    word.backend_tokenizer.post_processor = TemplateProcessing(single="$A user", special_tokens=[("user", 4093)])
    assert raw(word, {"text": "a b"})[0].origin.tolist() == [CONTENT, CONTENT, SPECIAL], "added, though not marked"


class Slow:
    """A tokenizer without offsets with special tokens."""

    all_special_ids = (1,)
    chat_template = "yes"

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}

    def __len__(self) -> int:
        return 256

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return "".join(message["content"] for message in messages)


def test_a_slow_tokenizer_knows_special_ids_and_no_template() -> None:
    """Without offsets, raw prompts have origins by id and chats none. Without special ids, raw prompts have none
    either."""
    assert raw(Slow(), {"text": "ab"})[0].origin.tolist() == [SPECIAL, CONTENT, CONTENT]
    assert raw(Slow(), {"text": "ab"}, prompt_format="chat")[0].origin.tolist() == [UNKNOWN] * 2
    silent = type("Silent", (Slow,), {"all_special_ids": None})()
    assert raw(silent, {"text": "ab"})[0].origin.tolist() == [UNKNOWN] * 3


def prepared(path: Path, tokenizer: Any, items: list[dict[str, Any]], **options: Any) -> Any:
    """Prepare an archive without running it; return it and the warnings of its extraction."""
    facts = random_attributes(2, 8)
    engine: Any = SimpleNamespace(
        tokenizer=tokenizer, max_model_len=512, vocabulary=50_000, model=facts.model, engine=facts.engine
    )
    instructions = [Instruction.model_validate({"id": f"i{n}", **item}) for n, item in enumerate(items)]
    return prepare_extraction(engine, instructions, ExtractionOptions(**options), path).warnings


def test_two_bos_tokens_are_reported_and_recorded(tokenizer: Any, tmp_path: Path) -> None:
    """If the text has BOS and the tokenizer adds another, or the ids hold two, a warning gives the number and first
    ids."""
    items = [
        {"text": "fine"},
        {"text": "<|im_start|>twice"},
        {"token_ids": (BOS, BOS, 7)},
        {"token_ids": (BOS, 7, BOS)},
        {"token_ids": (BOS,)},
    ]
    warnings = prepared(tmp_path / "a.zarr", adding(tokenizer), items)
    (warning,) = warnings
    assert warning.startswith("2 of 5 instructions ('i1', 'i2'): the prompt begins with the BOS token (id 1) twice.")
    assert "--no-special-tokens" in warning
    assert open_archive(tmp_path / "a.zarr").attributes.warnings == warnings
    assert prepared(tmp_path / "b.zarr", adding(tokenizer), items[:2], add_special_tokens=False) == []
    assert prepared(tmp_path / "c.zarr", tokenizer, [{"text": "<|im_start|>once"}]) == []
    bos_in_template = templated(tokenizer, "{{ bos_token }}{{ messages[0].content }}")
    (warning,) = prepared(tmp_path / "d.zarr", bos_in_template, [{"text": "<|im_start|>x"}], prompt_format="chat")
    assert "the prompt begins with the BOS token" in warning


def test_warnings_name_three_ids_and_the_number() -> None:
    """Long lists are shortened; a tokenizer without BOS cannot double it; unknown origins are named."""
    names, ids = [f"i{k}" for k in range(1000)], [np.array([1, 1, 2], dtype=np.int32)] * 1000
    known, unknown = ([np.full(3, origin, dtype=np.uint8)] * 1000 for origin in (CONTENT, UNKNOWN))
    (warning,) = prompt_warnings(names, ids, known, 1)
    assert warning.startswith("1,000 of 1,000 instructions ('i0', 'i1', 'i2', …): ")
    assert prompt_warnings(names, ids, known, None) == []
    (warning,) = prompt_warnings(names, ids, unknown, 2)
    assert "the origin of the prompt's tokens is unknown" in warning


@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_plain_zarr_finds_the_origin_of_every_row(tokenizer: Any, tmp_path: Path, positions: str) -> None:
    """Rows of prompts have their origins, rows of responses 3. Lengths by origin are columns, for counts too."""
    items: list[dict[str, Any]] = [{"text": "One?"}, {"text": "too long " * 600}, {"text": "Three, four"}]
    options = {"positions": positions, "max_tokens": 0 if positions == "prompt" else 4, "prompt_format": "chat"}
    prompts = [chat(tokenizer, ("user", item["text"])) for item in items]
    lengths = [[(prompt.origin == origin).sum() for prompt in prompts] for origin in (TEMPLATE, SPECIAL)]
    for granularity in ("token", "count"):
        prepared(tmp_path / f"{granularity}.zarr", tokenizer, items, granularity=granularity, **options)
        group = zarr.open_group(tmp_path / f"{granularity}.zarr", mode="r")
        assert group["instruction/template_length"][:].tolist() == lengths[0]
        assert group["instruction/special_length"][:].tolist() == lengths[1]
        assert open_archive(tmp_path / f"{granularity}.zarr").knows_origins
    assert "token/origin" not in group
    group = zarr.open_group(tmp_path / "token.zarr", mode="r")
    reserved = [RESPONSE] * options["max_tokens"]  # type: ignore[operator]
    rows = [[] if positions == "response" else prompts[k].origin.tolist() for k in (0, 2)]
    assert group["token/origin"][:].tolist() == [*rows[0], *reserved, *rows[1], *reserved]
    assert group["token/origin"].metadata.fill_value == 255

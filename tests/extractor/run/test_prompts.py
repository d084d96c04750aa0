"""Instructions become token ids. Prompts that do not fit have an error; all problems are reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparcom_data.archive import open_archive
from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.testing import random_attributes
from sparcom_extractor.preparation import prepare_extraction
from sparcom_extractor.prompts import (
    BYTES_PER_TOKEN,
    Prompt,
    load_tokenizer,
    make_prompts,
    special_token_ids,
    tokenizer_sha256,
)

LIMIT = 50


class WithBos:
    """A tokenizer that, unlike the demo model's, adds BOS: token 1, then one token per letter."""

    chat_template: str | None = None

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}

    def __len__(self) -> int:
        return 256

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        if messages[0]["role"] == "system":
            raise TypeError("no system turns here")
        return "".join(f"<{message['role'][0]}>{message['content']}" for message in messages) + "<a>"


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    return load_tokenizer(str(demo_model))


def prompts(tokenizer: Any, *items: dict[str, Any], limit: int = LIMIT, **options: Any) -> list[Prompt]:
    return make_prompts(tokenizer, instructions_of(*items), ExtractionOptions(**options), limit)


def instructions_of(*items: dict[str, Any]) -> list[Instruction]:
    return [Instruction.model_validate({"id": f"i{n}", **item}) for n, item in enumerate(items)]


def turns(*contents: str, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for content in contents]}


def with_template() -> WithBos:
    made = WithBos()
    made.chat_template = "anything"
    return made


def test_raw_text_is_tokenized_unchanged(tokenizer: Any) -> None:
    """In raw format the archive's text is the given text, its ids are the tokenizer's, and they decode to it."""
    (prompt,) = prompts(tokenizer, {"text": "The capital of France is"})
    assert prompt.text == "The capital of France is"
    assert prompt.ids.tolist() == tokenizer("The capital of France is")["input_ids"]
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert (str(prompt.ids.dtype), prompt.error) == ("int32", "")


def test_chat_applies_the_models_template(tokenizer: Any) -> None:
    """In chat format, turns become the template's text, a plain text is one user turn, and only the template adds
    special tokens."""
    one, several = prompts(tokenizer, {"text": "Hello"}, turns("Hello"), prompt_format="chat")
    assert one.text == several.text
    assert one.ids.tolist() == several.ids.tolist()
    assert "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n" in one.text
    assert one.ids.tolist() == tokenizer(one.text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in one.ids


def test_token_ids_are_used_unchanged(tokenizer: Any) -> None:
    """Given ids are the prompt, without text, in their place among texts."""
    first, given, last = prompts(tokenizer, {"text": "one"}, {"token_ids": (5, 0, 42)}, {"text": "two"})
    assert (given.text, given.ids.tolist(), given.error) == ("", [5, 0, 42], "")
    assert (first.text, last.text) == ("one", "two")
    assert first.ids.tolist() != last.ids.tolist()


def test_special_tokens_are_added_only_in_raw_format() -> None:
    """add_special_tokens applies to raw format; a chat template writes its own."""
    assert prompts(WithBos(), {"text": "ab"})[0].ids.tolist() == [1, 97, 98]
    assert prompts(WithBos(), {"text": "ab"}, add_special_tokens=False)[0].ids.tolist() == [97, 98]
    chat = prompts(with_template(), {"text": "ab"}, prompt_format="chat")[0]
    assert chat.ids.tolist() == [ord(letter) for letter in "<u>ab<a>"]


def test_the_limit_counts_every_token() -> None:
    """A prompt of exactly the limit runs; one more token gives an error with both numbers."""
    fits, over = prompts(WithBos(), {"text": "a" * (LIMIT - 1)}, {"text": "a" * LIMIT})
    assert fits.error == ""
    assert over.error.startswith(f"a prompt may have at most {LIMIT} tokens")
    assert f"this one has {LIMIT + 1}" in over.error


class Recording(WithBos):
    """Records the size of each call."""

    chat_template = "anything"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        self.batches.append([len(text) for text in texts])
        return super().__call__(texts, add_special_tokens)


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_text_that_cannot_fit_is_not_tokenized(letter: str, chat: bool) -> None:
    """A text, or all turns together, with more than 128 bytes per token of the limit gets its own error; the others
    run."""
    seen = Recording()
    fits = letter * (LIMIT * BYTES_PER_TOKEN // len(letter.encode()))
    large = turns(fits, letter) if chat else {"text": fits + letter}
    options = {"prompt_format": "chat"} if chat else {}
    first, refused, last = prompts(seen, {"text": "a"}, large, {"text": fits}, **options)
    assert (refused.text, refused.ids.tolist()) == ("", [])
    assert f"its text at most {LIMIT * BYTES_PER_TOKEN:,} bytes; this text of" in refused.error
    assert first.error == ""
    assert last.error.startswith("a prompt may have at most")
    assert "bytes" not in last.error
    assert sum(map(len, seen.batches)) == 2


def test_texts_are_bounded_for_any_context() -> None:
    """Even with a context of a million tokens, one instruction has at most 16 MiB of text."""
    (refused,) = prompts(WithBos(), {"text": "a" * (16 * 2**20 + 1)}, limit=1_000_000)
    assert "at most 16,777,216 bytes" in refused.error


def test_texts_are_tokenized_in_batches() -> None:
    """Each call of the tokenizer gets a bounded number of characters; ids belong to each text, in order."""
    seen = Recording()
    sizes = [100_000, 162_144, 100_000, 1, 262_143]
    made = prompts(seen, *({"text": "a" * size} for size in sizes), limit=2_000_000)
    assert seen.batches == [[100_000, 162_144], [100_000, 1], [262_143]]
    assert [len(prompt.ids) for prompt in made] == [size + 1 for size in sizes]


def test_a_long_text_is_counted_in_parts(tokenizer: Any) -> None:
    """Counting stops once the parts have too many tokens; a text that fits has the ids of the whole."""
    seen = Recording()
    (refused,) = prompts(seen, {"text": "a" * 5_000_000}, limit=300_000)
    assert refused.error.startswith("a prompt may have at most 300000 tokens")
    assert seen.batches == [[2**18]] * 2
    text = "The capital of France is Paris. " * 20_000
    whole = tokenizer(text)["input_ids"]
    fits, over = (prompts(tokenizer, {"text": text}, limit=len(whole) - less)[0] for less in (0, 1))
    assert (fits.ids.tolist(), fits.error) == (whole, "")
    assert over.error.startswith("a prompt may have at most")


def test_a_text_without_tokens_has_its_own_error() -> None:
    """A tokenizer may produce no tokens from a text; that instruction cannot run."""
    silent = WithBos()
    silent.__class__ = type("Silent", (WithBos,), {"__call__": lambda *_, **__: {"input_ids": [[]]}})
    (prompt,) = prompts(silent, {"text": "x"})
    assert "produces none from this text" in prompt.error


def test_ids_past_the_vocabulary_have_their_own_error(tokenizer: Any) -> None:
    """The largest id of the vocabulary runs; the next one would read past the embedding."""
    size = len(tokenizer)
    fits, over = prompts(tokenizer, {"token_ids": (size - 1,)}, {"token_ids": (3, size)})
    assert fits.error == ""
    assert over.error == f"token ids must be below the vocabulary's size {size}; the largest is {size}"


def test_ids_past_the_models_embedding_have_their_own_error(tokenizer: Any) -> None:
    """For a tokenizer extended without its model, the limit is the model's, for given ids and for text."""
    size = len(tokenizer)
    items = [{"text": "plain"}, {"token_ids": (size - 2,)}, {"token_ids": (size - 3,)}]
    runs, over, fits = make_prompts(tokenizer, instructions_of(*items), ExtractionOptions(), LIMIT, size - 2)
    assert (runs.error, fits.error) == ("", "")
    assert over.error.startswith(f"token ids must be below the size of the model's vocabulary, {size - 2}; the largest")
    extended = load_tokenizer(tokenizer.name_or_path)
    extended.add_tokens(["<new>"])
    text, plain = make_prompts(
        extended, instructions_of({"text": "a <new> b"}, {"text": "a"}), ExtractionOptions(), LIMIT, size
    )
    assert f"vocabulary, {size}; the largest is {size}. Remove" in text.error
    assert plain.error == ""


def test_ids_that_a_tokenizer_skips_do_not_lower_its_bound() -> None:
    """Some tokenizers have fewer tokens than their largest id; their texts run."""
    gappy = WithBos()
    gappy.get_vocab = lambda: {"a": 97, "é": 300}  # type: ignore[attr-defined]
    (fits, over) = prompts(gappy, {"token_ids": (300,)}, {"token_ids": (301,)})
    assert fits.error == ""
    assert "below the vocabulary's size 301; the largest is 301" in over.error


def test_every_instruction_that_does_not_match_the_format_is_listed(tokenizer: Any) -> None:
    """Raw format accepts no messages, and chat no token ids. Exactly the instructions that do not fit are listed, with
    their places.
    """
    with pytest.raises(InvalidInputError) as caught:
        prompts(tokenizer, turns("a"), {"text": "b"}, turns("c"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "instructions.0 (id 'i0')",
        "instructions.2 (id 'i2')",
    ]
    with pytest.raises(InvalidInputError) as caught:
        prompts(tokenizer, {"token_ids": (1,)}, {"text": "b"}, {"token_ids": (2,)}, prompt_format="chat")
    assert len(caught.value.problems) == 2
    assert "token_ids need prompt_format 'raw'" in caught.value.problems[1]


def test_chat_without_a_template_is_refused_with_everything_else() -> None:
    """A missing chat template is one more problem on the list."""
    with pytest.raises(InvalidInputError) as caught:
        prompts(WithBos(), {"token_ids": (1,)}, prompt_format="chat")
    assert len(caught.value.problems) == 2
    assert "'chat' needs a chat template;" in caught.value.problems[1]


def test_every_chat_that_the_template_rejects_is_listed() -> None:
    """Templates may raise anything; all their errors are reported, each with its instruction."""
    system = turns("be nice", role="system")
    with pytest.raises(InvalidInputError) as caught:
        prompts(with_template(), system, turns("fine"), system, prompt_format="chat")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "instructions.0 (id 'i0')",
        "instructions.2 (id 'i2')",
    ]
    assert "do not fit the model's chat template: no system turns here" in caught.value.problems[0]


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """A folder without a tokenizer gives a one-line error that names it."""
    with pytest.raises(InvalidInputError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokenizers_have_distinct_hashes(tokenizer: Any, demo_model: Path, tmp_path: Path) -> None:
    """The hash is that of tokenizer.json if it exists, and changes with it."""
    import hashlib

    content = (demo_model / "tokenizer.json").read_bytes()
    assert tokenizer_sha256(tokenizer, str(demo_model)) == hashlib.sha256(content).hexdigest()
    (tmp_path / "tokenizer.json").write_bytes(content + b"\n")
    assert tokenizer_sha256(tokenizer, str(tmp_path)) != hashlib.sha256(content).hexdigest()
    assert len(tokenizer_sha256(tokenizer, "a-name/on-the-hub")) == 64


class Marked(WithBos):
    """A tokenizer with different lists: 1 has a role, 9 is flagged, 5 is an ordinary added token."""

    all_special_ids = (2, 1)
    added_tokens_decoder = {  # noqa: RUF012  (as transformers has it)
        9: SimpleNamespace(special=True),
        1: SimpleNamespace(special=True),
        5: SimpleNamespace(special=False),
    }


def prepared(path: Path, tokenizer: Any) -> Any:
    """Return the attributes of an archive that the extractor made with this tokenizer."""
    facts = random_attributes(2, 8)
    engine: Any = SimpleNamespace(
        tokenizer=tokenizer, max_model_len=64, vocabulary=1 << 20, model=facts.model, engine=facts.engine
    )
    prepare_extraction(engine, [Instruction(id="a", text="ab")], ExtractionOptions(), path)
    return open_archive(path).attributes


def test_tokens_with_a_role_and_tokens_flagged_are_special() -> None:
    """Both lists of the tokenizer count, each id once and ascending; an added token without the flag does not."""
    assert special_token_ids(Marked()) == [1, 2, 9]


def test_only_the_turn_markers_of_the_demo_models_template_are_special(demo_model: Path) -> None:
    """The markers around turns are special; `user`, which the template writes after one, is not."""
    tokenizer = load_tokenizer(str(demo_model))
    special = special_token_ids(tokenizer)
    assert special is not None
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    assert set(marks) <= set(special)
    assert not set(tokenizer("user\nHello", add_special_tokens=False)["input_ids"]) & set(special)


@pytest.mark.parametrize(("tokenizer", "expected"), [(Marked(), [1, 2, 9]), (WithBos(), None)])
def test_the_archive_holds_special_ids(tmp_path: Path, tokenizer: Any, expected: list[int] | None) -> None:
    """The attribute `prompts` holds the tokenizer's special ids; it is null if the tokenizer reports none."""
    prompts = prepared(tmp_path / "a.zarr", tokenizer).prompts
    assert (None if prompts is None else prompts.special_token_ids) == expected

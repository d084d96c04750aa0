"""Which tokens are special is asked of the tokenizer and written into the archive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparcom_data.archive import open_archive
from sparcom_data.instructions import Instruction
from sparcom_data.schema.options import ExtractionOptions
from sparcom_data.testing import random_attributes
from sparcom_extractor.extraction import prepare_extraction
from sparcom_extractor.prompts import load_tokenizer, special_token_ids


class Letters:
    """A tokenizer of a token a letter that says nothing of special tokens."""

    chat_template = None

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * add_special_tokens + [ord(letter) for letter in text] for text in texts]}

    def __len__(self) -> int:
        return 256


class Marked(Letters):
    """One whose two lists differ: 1 has a role, 9 is flagged, 5 is an added token like any word."""

    all_special_ids = (2, 1)
    added_tokens_decoder = {  # noqa: RUF012  (as transformers has it)
        9: SimpleNamespace(special=True),
        1: SimpleNamespace(special=True),
        5: SimpleNamespace(special=False),
    }


def prepared(path: Path, tokenizer: Any) -> Any:
    """Attributes of an archive made by the extractor with that tokenizer."""
    facts = random_attributes(2, 8)
    engine: Any = SimpleNamespace(
        tokenizer=tokenizer, max_model_len=64, vocabulary=1 << 20, model=facts.model, engine=facts.engine
    )
    prepare_extraction(engine, [Instruction(id="a", text="ab")], ExtractionOptions(), path)
    return open_archive(path).attributes


def test_tokens_with_a_role_and_tokens_flagged_are_special() -> None:
    """Both lists of the tokenizer count, each id once and ascending; an added token without the flag does not."""
    assert special_token_ids(Marked()) == [1, 2, 9]


def test_marks_of_the_demo_models_template_are_special_and_its_words_are_not(demo_model: Path) -> None:
    """The marks around turns are special; `user`, which the template writes behind one, is a word."""
    tokenizer = load_tokenizer(str(demo_model))
    special = special_token_ids(tokenizer)
    assert special is not None
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    assert set(marks) <= set(special)
    assert not set(tokenizer("user\nHello", add_special_tokens=False)["input_ids"]) & set(special)


@pytest.mark.parametrize(("tokenizer", "expected"), [(Marked(), [1, 2, 9]), (Letters(), None)])
def test_the_archive_knows_them_from_the_extraction(tmp_path: Path, tokenizer: Any, expected: list[int] | None) -> None:
    """The attribute `prompts` holds what the tokenizer said, and is null where it says nothing."""
    prompts = prepared(tmp_path / "a.zarr", tokenizer).prompts
    assert (None if prompts is None else prompts.special_token_ids) == expected

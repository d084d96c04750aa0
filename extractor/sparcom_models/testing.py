"""A tokenizer of 60 tokens, for tests that make models without a tokenizer on disk."""

from __future__ import annotations

import json
from pathlib import Path

SMALL_VOCABULARY = 60


def write_small_tokenizer(folder: Path) -> Path:
    """Write a tokenizer to `folder`: three special tokens, then the characters A to y, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["<s>", "</s>", "<pad>", *(chr(code) for code in range(65, 122))]
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

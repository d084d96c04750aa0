"""Data of fine-tuning: settings, tokens with a loss, truncation, the split, mean losses and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import Instruction
from sparcom_models import make_tiny_model
from sparcom_models.testing import write_small_tokenizer
from sparcom_models.tune.data import Example, make_examples, split
from sparcom_models.tune.settings import TuneSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'][0] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tokenizer of 60 tokens with a chat template."""
    made = transformers.AutoTokenizer.from_pretrained(write_small_tokenizer(tmp_path_factory.mktemp("vocabulary")))
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: must be above 0; it is 0"),
        ({"learning_rate": float("nan")}, "learning_rate: must lie between 0 and 1; it is nan"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"max_length": 1}, "max_length: must be at least 2"),
        ({"held_out": 0.0}, "held_out: must lie between 0 and 1"),
        ({"seed": -1}, "seed: must lie between"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    """Each broken rule is reported with the value, all at once."""
    with pytest.raises(InvalidInputError, match=message):
        TuneSettings(**settings)
    with pytest.raises(InvalidInputError) as refused:
        TuneSettings(**({"epochs": -1.0, "batch_size": -1, "max_length": -1} | settings))
    assert len(refused.value.problems) >= 3


def conversation(*contents: str) -> Instruction:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return Instruction.model_validate({"id": "c", "messages": messages})


def chat_example(tokenizer: Any, item: Instruction) -> tuple[Example, list[str]]:
    """Return the example of one conversation, and its tokens with a loss."""
    (example,) = make_examples(tokenizer, [item], TuneSettings(prompt_format="chat"))
    counted = [token for token, label in zip(example.ids, example.labels, strict=True) if label != -100]
    assert all(label in (-100, token) for token, label in zip(example.ids, example.labels, strict=True))
    return example, tokenizer.convert_ids_to_tokens(counted)


def test_only_the_assistants_tokens_count(tokenizer: Any) -> None:
    """If the assistant ends the conversation, only its answers and their end markers have a loss."""
    example, counted = chat_example(tokenizer, conversation("AB", "CD", "EF", "GHI"))
    assert counted == ["C", "D", "</s>", "G", "H", "I", "</s>"]
    assert example.predicted == 7
    assert len(example.ids) == 9 + 12 - 4 + 4


def test_a_conversation_that_the_user_ends_counts_whole(tokenizer: Any) -> None:
    """Without an answer to learn, all tokens have a loss, as tokenized for an extraction with the answer's opening."""
    example, counted = chat_example(tokenizer, conversation("AB"))
    assert counted == ["<s>", "u", "A", "B", "</s>", "<s>", "a"]
    assert example.labels == example.ids


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If later messages change the beginning of the rendered text, turns cannot be found."""
    numbered = "{{ 'ABCD'[messages | length] }}" + TEMPLATE
    monkeypatch.setattr(tokenizer, "chat_template", numbered)
    with pytest.raises(InvalidInputError, match="must not change earlier messages"):
        chat_example(tokenizer, conversation("AB", "CD"))


def test_without_a_chat_template_conversations_are_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused as in an extraction."""
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InvalidInputError, match="needs a chat template"):
        chat_example(tokenizer, conversation("AB", "CD"))


def test_token_ids_are_used_unchanged(tokenizer: Any) -> None:
    """No special token is added, and all tokens have a loss."""
    item = Instruction.model_validate({"id": "t", "token_ids": [9, 8, 7]})
    (example,) = make_examples(tokenizer, [item], TuneSettings())
    assert (example.ids, example.labels, example.predicted) == ([9, 8, 7], [9, 8, 7], 2)


def test_long_examples_are_truncated_and_empty_ones_left_out() -> None:
    """An answer beyond the limit and a single token are left out, since neither has a token to predict."""
    plain = [Example(f"p{number}", [1] * 10, [1] * 10) for number in range(10)]
    odd = [
        Example("long", [1] * 50, [1] * 50),
        Example("answer far", [1] * 50, [-100] * 40 + [1] * 10),
        Example("single", [1], [1]),
    ]
    parts = split([*plain, *odd], TuneSettings(max_length=32, held_out=0.2))
    training, held_out = parts["training"], parts["held_out"]
    assert len(held_out) == len(parts["training_sample"]) == 2
    assert sorted(example.id for example in (*training, *held_out)) == ["long", *(f"p{n}" for n in range(10))]
    assert max(len(example.ids) for example in (*training, *held_out)) == 32


def test_the_mean_loss_weights_tokens_equally(tmp_path: Path) -> None:
    """The mean over examples is weighted by their tokens with a loss; the model's mode is unchanged."""
    from sparcom_models.tune.train import mean_loss

    made = make_tiny_model("qwen2-moe", tmp_path / "m", tokenizer=write_small_tokenizer(tmp_path))
    model = transformers.AutoModelForCausalLM.from_pretrained(made.path).train()
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 60, length).tolist() for length in (2, 9, 30, 5)]
    examples = [Example(str(number), row, [-100, -100, *row[2:]]) for number, row in enumerate(ids)]
    examples[0] = Example("0", ids[0], ids[0])
    counted = [1, 7, 28, 3]
    assert [example.predicted for example in examples] == counted
    alone = [mean_loss(model, [example]) for example in examples]
    assert mean_loss(model, examples) == pytest.approx(np.average(alone, weights=counted), rel=1e-5)
    assert model.training


def test_batches_are_of_similar_lengths_and_hold_everything_once() -> None:
    """Padding is small, every instruction is in one batch, batches are not sorted by length, and the seed fixes all."""
    from sparcom_models.tune.train import make_batches

    lengths = np.random.default_rng(0).integers(1, 200, 103)
    first, again = (make_batches(lengths.tolist(), 8, seed=3) for _ in range(2))
    assert first == again
    assert len(first) == 13
    assert sorted(number for batch in first for number in batch) == list(range(103))
    longest = [max(lengths[batch]) for batch in first]
    assert sum(len(batch) * length for batch, length in zip(first, longest, strict=True)) < 1.1 * lengths.sum()
    assert abs(np.corrcoef(longest, range(13))[0, 1]) < 0.6
    assert make_batches(lengths.tolist(), 8, seed=2) != first

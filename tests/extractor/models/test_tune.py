"""Fine-tuned models: the loss falls, only weights change, and SOURCE.json is correct."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.errors import ModelUnavailableError, TrainingFailedError
from sparcom_models import folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safe_open = pytest.importorskip("safetensors").safe_open
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURES = ("llama", "qwen2-moe")
Tune = Callable[..., folder.MadeModel]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tuned(request: pytest.FixtureRequest, place: Path, tune: Tune) -> tuple[Path, folder.MadeModel]:
    """Return a base's folder and its tuned model."""
    return place / request.param, tune(place / f"{request.param}-tuned", request.param)


def set_config(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path)


def loss_by_transformers(path: Path, texts: list[str], max_length: int) -> float:
    """Return the mean loss per token of a folder's model on single texts, by the model's own loss."""
    model, tokenizer = load(path).float(), transformers.AutoTokenizer.from_pretrained(path)
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:max_length]])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def texts_of(place: Path, ids: list[str]) -> list[str]:
    items = [json.loads(line) for line in (place / "data.jsonl").read_text().splitlines()]
    return [item["text"] for item in items if item["id"] in ids]


def test_the_loss_falls_on_both_splits(tuned: tuple[Path, folder.MadeModel]) -> None:
    """The loss falls on the training sample and on the test split."""
    for part in tuned[1].source["loss"].values():
        assert part["after"] < part["before"] - 0.1


def test_the_losses_are_those_of_transformers(tuned: tuple[Path, folder.MadeModel], place: Path) -> None:
    """SOURCE.json has the models' own loss, computed text by text without padding."""
    base, made = tuned
    texts = texts_of(place, json.loads((made.path / "held-out.json").read_text()))
    assert len(texts) == made.source["instructions"]["held_out"] == 3
    losses = made.source["loss"]["held_out"]
    assert losses["before"] == pytest.approx(loss_by_transformers(base, texts, 24), rel=1e-5)
    assert losses["after"] == pytest.approx(loss_by_transformers(made.path, texts, 24), rel=1e-5)


def test_every_ffn_has_other_weights(tuned: tuple[Path, folder.MadeModel]) -> None:
    """Each FFN tensor, including routers, differs in part from the base's; shapes, names and dtypes do not."""
    before, after = (load(path).state_dict() for path in (tuned[0], tuned[1].path))
    assert {name: (value.shape, value.dtype) for name, value in before.items()} == {
        name: (value.shape, value.dtype) for name, value in after.items()
    }
    inner = [name for name in before if ".mlp." in name]
    assert len(inner) >= 9
    assert not [name for name in inner if torch.equal(before[name], after[name])]
    differing = sum(int((before[name] != after[name]).sum()) for name in before)
    share = differing / sum(value.numel() for value in before.values())
    assert tuned[1].source["weights_changed"]["share"] == pytest.approx(share)
    assert 0 < tuned[1].source["weights_changed"]["distance"] < 1


def test_only_the_weights_differ_from_the_base(tuned: tuple[Path, folder.MadeModel]) -> None:
    """Tokenizer, configuration and generation settings have the same bytes; weights have the same names on disk."""
    base, made = tuned
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (base / name).read_bytes() == (made.path / name).read_bytes(), name
    names = []
    for path in (base, made.path):
        with safe_open(path / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


def test_the_folder_holds_only_documented_files(tuned: tuple[Path, folder.MadeModel]) -> None:
    """It holds the model, curve, figure, continuations and test-split ids; the Trainer leaves nothing."""
    base, made = tuned
    extra = {"loss.csv", "loss.png", "continuations.json", "held-out.json"}
    assert {path.name for path in made.path.iterdir()} == {path.name for path in base.iterdir()} | extra
    assert (made.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    texts = json.loads((made.path / "continuations.json").read_text())
    assert texts[0]["prompt"] == "The capital of France is"
    assert all(set(item) == {"prompt", "base", "tuned"} for item in texts)


def test_the_source_records_the_recipe(tuned: tuple[Path, folder.MadeModel], place: Path) -> None:
    """It has base, data, licences, settings, and numbers of instructions and tokens."""
    base, made = tuned
    source = folder.read_source(made.path)
    assert source == made.source
    assert source is not None
    assert source["name"] == f"tiny-{base.name}-tuned"
    assert source["data_sha256"] == folder.sha256_of(place / "data.jsonl")
    assert source["licence"] == "random weights"
    assert source["data_licences"] == {"CC0-1.0": 29, "not stated": 1}
    settings = {"epochs": 2.0, "learning_rate": 1e-3, "batch_size": 4, "precision": "float32", "max_length": 24}
    assert (settings | {"held_out": 0.1}).items() <= source.items()
    assert source["instructions"] == {"training": 27, "training_sample": 3, "held_out": 3, "cut": 9, "left_out": 0}
    assert source["tokens_trained_on"] == 2 * source["tokens"]["training"]
    assert source["steps"] == 14
    assert source["router_auxiliary_loss"] is None


def test_the_curve_has_every_step(tuned: tuple[Path, folder.MadeModel]) -> None:
    """The curve has one row for the base and one per step. Test losses are measured at the start, on the way and at the
    end. The learning rate rises and falls to 0."""
    source = tuned[1].source
    rows = list(csv.DictReader((tuned[1].path / "loss.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(15))
    assert float(rows[-1]["epoch"]) == 2
    assert int(rows[-1]["tokens"]) == source["tokens_trained_on"]
    assert [int(row["step"]) for row in rows if row["held_out_loss"]] == [0, 4, 9, 14]
    for row, when in ((rows[0], "before"), (rows[-1], "after")):
        assert float(row["held_out_loss"]) == pytest.approx(source["loss"]["held_out"][when], rel=1e-6)
    rates = [float(row["learning_rate"]) for row in rows[1:]]
    assert max(rates) == pytest.approx(1e-3)
    assert 0 < rates.index(max(rates)) < 4
    assert rates[-1] < 1e-4
    assert np.mean([float(row["training_loss"]) for row in rows[-4:]]) < float(rows[1]["training_loss"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_fixes_every_byte(architecture: str, place: Path, tune: Tune, tmp_path: Path) -> None:
    """The same recipe gives the same files, and a second call does nothing; another seed gives other weights."""
    first, again, other = (
        tune(tmp_path / name, architecture, epochs=0.5, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert again.fresh
    assert again.source == first.source
    assert other.source["files"]["model.safetensors"] != again.source["files"]["model.safetensors"]
    assert not tune(tmp_path / "again", architecture, epochs=0.5).fresh
    with pytest.raises(ModelUnavailableError, match="seed 0 instead of seed 2"):
        tune(tmp_path / "again", architecture, epochs=0.5, seed=2)


def test_sums_do_not_depend_on_thread_order(place: Path, tune: Tune, tmp_path: Path) -> None:
    """Training runs with torch's deterministic algorithms. Without them, two runs of an MoE model on two threads
    differed."""
    strict = []
    tune(tmp_path / "m", epochs=0.2, on_progress=lambda *_, **__: strict.append(repeats()))
    assert not strict[0]
    assert all(strict[1:])
    assert not repeats()


def repeats() -> bool:
    return bool(torch.are_deterministic_algorithms_enabled())


def test_the_callers_random_state_is_kept(place: Path, tune: Tune, tmp_path: Path) -> None:
    """Training draws from its own seed; the caller's random sequence is unaffected."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tune(tmp_path / "m", epochs=0.2)
    assert torch.equal(torch.rand(1), expected)


def test_a_base_of_half_precision_keeps_its_dtype(place: Path, tune: Tune, tmp_path: Path) -> None:
    """The model is trained in float32 and rounded at the end; recorded losses are those of the rounded weights. A
    configuration of an older transformers stays unchanged."""
    model = load(place / "llama").bfloat16()
    shutil.copytree(place / "llama", tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    set_config(tmp_path / "half", transformers_version="4.42.3")
    made = tune(tmp_path / "m", tmp_path / "half")
    with safe_open(made.path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert (made.path / "config.json").read_bytes() == (tmp_path / "half" / "config.json").read_bytes()
    texts = texts_of(place, json.loads((made.path / "held-out.json").read_text()))
    after = made.source["loss"]["held_out"]["after"]
    assert after == pytest.approx(loss_by_transformers(made.path, texts, 24), rel=1e-5)
    with pytest.raises(TrainingFailedError, match=r"after rounding to torch\.bfloat16 no weight does"):
        tune(tmp_path / "n", tmp_path / "half", learning_rate=1e-12)
    assert not (tmp_path / "n").exists()


def test_held_out_losses_are_float32(place: Path, tune: Tune, tmp_path: Path) -> None:
    """Training in bfloat16 still measures test losses in float32: with almost no learning they do not change."""
    made = tune(tmp_path / "m", learning_rate=1e-8, precision="bfloat16")
    looks = [row["held_out_loss"] for row in csv.DictReader((made.path / "loss.csv").read_text().splitlines())]
    losses = [float(look) for look in looks if look]
    assert len(losses) == 4
    assert max(losses) - min(losses) < 2e-4
    assert losses == sorted(losses, reverse=True)


def test_a_routers_loss_counts_if_configured(place: Path, tune: Tune, tmp_path: Path) -> None:
    """It is part of the training loss, not of the losses before and after; SOURCE.json has its coefficient."""
    shutil.copytree(place / "qwen2-moe", tmp_path / "base")
    set_config(tmp_path / "base", output_router_logits=True, router_aux_loss_coef=10.0)
    made = tune(tmp_path / "m", tmp_path / "base", epochs=0.5)
    plain = tune(tmp_path / "plain", "qwen2-moe", epochs=0.5)
    assert (made.source["router_auxiliary_loss"], plain.source["router_auxiliary_loss"]) == (10.0, None)
    assert made.source["loss"]["held_out"]["before"] == plain.source["loss"]["held_out"]["before"]
    first = [
        float(list(csv.DictReader((made.path / "loss.csv").read_text().splitlines()))[1]["training_loss"])
        for made in (made, plain)
    ]
    assert first[0] > first[1] + 10


def test_the_trainer_prints_nothing(
    place: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints nothing and writes no file to the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    tune(tmp_path / "out" / "m", epochs=0.5, precision="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stopped", ["reading instructions", "training", "measuring the tuned model"])
def test_an_interrupted_run_leaves_nothing(stopped: str, place: Path, tune: Tune, tmp_path: Path) -> None:
    """Ctrl-C at any point leaves no finished or partial folder."""

    def on_progress(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if step == stopped and (done or not total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "m", on_progress=on_progress)
    assert not list(tmp_path.iterdir())


def test_progress_reports_every_step(place: Path, tune: Tune, tmp_path: Path) -> None:
    """Progress has each step, the number of steps, and the loss."""
    reports: list[tuple[int, int, str]] = []

    def on_progress(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if total:
            reports.append((done, total, note))

    tune(tmp_path / "m", epochs=0.5, on_progress=on_progress)
    assert [(done, total) for done, total, _ in reports] == [(step, 4) for step in range(5)]
    assert all(note.startswith("loss ") for _, _, note in reports[1:])


def test_a_loss_that_rises_makes_no_model(place: Path, tune: Tune, tmp_path: Path) -> None:
    """Too high a learning rate is refused, with both losses and the remedy."""
    with pytest.raises(TrainingFailedError, match=r"it went from .* made; lower --learning-rate \(0\.9\)"):
        tune(tmp_path / "m", learning_rate=0.9)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_run(place: Path, tmp_path: Path) -> None:
    """If weights overflow, the error names the step, and nothing is kept."""
    from sparcom_models.tune.train import Recorder

    recorder = Recorder(3, lambda: 0.0, folder.no_progress)
    state = transformers.TrainerState(global_step=3, max_steps=9)
    for logs in ({"loss": float("nan"), "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": float("inf")}):
        with pytest.raises(TrainingFailedError, match="at step 3 of 9"):
            recorder.on_log(None, state, None, logs=logs)

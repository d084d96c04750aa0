"""A tuned twin: it learned, it is its base in everything else, and what is said of it is so."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparcom_data.errors import InvalidInputError, ModelUnavailableError, UnsupportedModelError
from sparcom_models import folder, make_tiny_model
from sparcom_models.testing import write_small_tokenizer
from sparcom_models.tune.data import Example, split
from sparcom_models.tune.settings import TuneSettings
from sparcom_models.tune.tune import tune_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safe_open = pytest.importorskip("safetensors").safe_open
pytest.importorskip("accelerate")

ARCHITECTURES = ("llama", "qwen2-moe")
QUICK: dict[str, Any] = {
    "epochs": 2.0,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "precision": "float32",
    "max_length": 24,
    "held_out": 0.1,
}


def write_data(path: Path, count: int = 30) -> Path:
    """Instructions of 4 to 33 letters whose next letter can be learned: each is a stretch of one alphabet."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYabcdefghijklmnopqrstuvwxy"
    lines = []
    for number in range(count):
        text = " ".join((letters * 2)[number : number + 4 + number % 30])
        lines.append(json.dumps({"id": f"i{number}", "text": text, "license": "CC0-1.0" if number else ""}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another awake took 13 s in place of 1 s beside another busy process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny bases by architecture, and data.jsonl."""
    place = tmp_path_factory.mktemp("tune")
    vocabulary = write_small_tokenizer(place)
    for architecture in ARCHITECTURES:
        make_tiny_model(architecture, place / architecture, tokenizer=vocabulary)
    write_data(place / "data.jsonl")
    return place


def tune(place: Path, output: Path, base: str | Path = "llama", tell: Any = None, **settings: Any) -> folder.MadeModel:
    data = settings.pop("data", place / "data.jsonl")
    told = {"tell": tell} if tell else {}
    return tune_model(place / base, data, output, settings=TuneSettings(**(QUICK | settings)), **told)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def twin(request: pytest.FixtureRequest, place: Path) -> tuple[Path, folder.MadeModel]:
    """A base's folder, and its tuned twin."""
    return place / request.param, tune(place, place / f"{request.param}-tuned", request.param)


def load(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path)


def loss_by_transformers(path: Path, texts: list[str], max_length: int) -> float:
    """The mean loss of a folder's model over the tokens of texts, each text alone, by the model's own loss."""
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


def test_the_loss_falls_on_both_parts(twin: tuple[Path, folder.MadeModel]) -> None:
    """Of what is trained on and of what is held out."""
    for part in twin[1].source["loss"].values():
        assert part["after"] < part["before"] - 0.1


def test_the_losses_are_those_of_transformers(twin: tuple[Path, folder.MadeModel], place: Path) -> None:
    """What SOURCE.json says is what the models' own loss gives, text by text and without padding."""
    base, made = twin
    texts = texts_of(place, json.loads((made.path / "held-out.json").read_text()))
    assert len(texts) == made.source["instructions"]["held_out"] == 3
    said = made.source["loss"]["held_out"]
    assert said["before"] == pytest.approx(loss_by_transformers(base, texts, 24), rel=1e-5)
    assert said["after"] == pytest.approx(loss_by_transformers(made.path, texts, 24), rel=1e-5)


def test_every_ffn_has_other_weights(twin: tuple[Path, folder.MadeModel]) -> None:
    """Each tensor of each FFN, a router's too, differs from the base's in part; shapes, names and dtypes do not."""
    before, after = (load(path).state_dict() for path in (twin[0], twin[1].path))
    assert {name: (value.shape, value.dtype) for name, value in before.items()} == {
        name: (value.shape, value.dtype) for name, value in after.items()
    }
    inner = [name for name in before if ".mlp." in name]
    assert len(inner) >= 9
    assert not [name for name in inner if torch.equal(before[name], after[name])]
    differing = sum(int((before[name] != after[name]).sum()) for name in before)
    share = differing / sum(value.numel() for value in before.values())
    assert twin[1].source["weights_changed"]["share"] == pytest.approx(share)
    assert 0 < twin[1].source["weights_changed"]["distance"] < 1


def test_all_but_the_weights_is_the_bases(twin: tuple[Path, folder.MadeModel]) -> None:
    """Tokenizer, configuration and generation settings are the same bytes, weights have the same names on disk."""
    base, made = twin
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert (base / name).read_bytes() == (made.path / name).read_bytes(), name
    names = []
    for path in (base, made.path):
        with safe_open(path / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


def test_the_folder_holds_what_is_promised_and_no_more(twin: tuple[Path, folder.MadeModel]) -> None:
    """Curve, picture, continuations and the held-out ids beside the model; the Trainer leaves nothing."""
    base, made = twin
    extra = {"loss.csv", "loss.png", "continuations.json", "held-out.json"}
    assert {path.name for path in made.path.iterdir()} == {path.name for path in base.iterdir()} | extra
    assert (made.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    said = json.loads((made.path / "continuations.json").read_text())
    assert said[0]["prompt"] == "The capital of France is"
    assert all(set(item) == {"prompt", "base", "tuned"} for item in said)


def test_the_source_tells_how_it_was_made(twin: tuple[Path, folder.MadeModel], place: Path) -> None:
    """Base, data, licences, settings, numbers of instructions and tokens."""
    base, made = twin
    source = folder.read_source(made.path)
    assert source == made.source
    assert source is not None
    assert source["name"] == f"tiny-{base.name}-tuned"
    assert source["data_sha256"] == folder.sha256_of(place / "data.jsonl")
    assert source["licence"] == "random weights"
    assert source["data_licences"] == {"CC0-1.0": 29, "not stated": 1}
    assert QUICK.items() <= source.items()
    assert source["instructions"] == {"training": 27, "training_sample": 3, "held_out": 3, "cut": 9, "left_out": 0}
    assert source["tokens_trained_on"] == 2 * source["tokens"]["training"]
    assert source["steps"] == 14
    assert source["router_auxiliary_loss"] is None


def test_the_curve_has_every_step(twin: tuple[Path, folder.MadeModel]) -> None:
    """A row a step after that of the base; held-out losses at the start, on the way and at the end; a rate that rises
    and falls to 0."""
    source = twin[1].source
    rows = list(csv.DictReader((twin[1].path / "loss.csv").read_text().splitlines()))
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
def test_a_seed_fixes_every_byte(architecture: str, place: Path, tmp_path: Path) -> None:
    """The same recipe gives the same files, and done a second time does nothing; another seed gives other weights."""
    first, again, other = (
        tune(place, tmp_path / name, architecture, epochs=0.5, seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert again.fresh
    assert again.source == first.source
    assert other.source["files"]["model.safetensors"] != again.source["files"]["model.safetensors"]
    assert not tune(place, tmp_path / "again", architecture, epochs=0.5).fresh
    with pytest.raises(ModelUnavailableError, match="seed 0 in place of seed 2"):
        tune(place, tmp_path / "again", architecture, epochs=0.5, seed=2)


def test_sums_do_not_depend_on_which_thread_comes_first(place: Path, tmp_path: Path) -> None:
    """Torch is held to algorithms that repeat themselves while training runs. Without that, and with two threads, two
    twins of a mixture of experts differed."""
    strict = []
    tune(place, tmp_path / "m", epochs=0.2, tell=lambda *_, **__: strict.append(repeats()))
    assert not strict[0]
    assert all(strict[1:])
    assert not repeats()


def repeats() -> bool:
    return bool(torch.are_deterministic_algorithms_enabled())


def test_the_callers_random_numbers_go_on(place: Path, tmp_path: Path) -> None:
    """Training draws from its own seed, and the caller's sequence is as if nothing had been drawn."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tune(place, tmp_path / "m", epochs=0.2)
    assert torch.equal(torch.rand(1), expected)


def test_a_base_of_half_precision_keeps_its_dtype(place: Path, tmp_path: Path) -> None:
    """Trained in float32 and rounded at the end: the losses said are those of the rounded weights. A configuration that
    an older transformers wrote stays as it is."""
    model = load(place / "llama").bfloat16()
    shutil.copytree(place / "llama", tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    configured(transformers_version="4.42.3")(tmp_path / "half")
    made = tune(place, tmp_path / "m", tmp_path / "half")
    with safe_open(made.path / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert (made.path / "config.json").read_bytes() == (tmp_path / "half" / "config.json").read_bytes()
    texts = texts_of(place, json.loads((made.path / "held-out.json").read_text()))
    said = made.source["loss"]["held_out"]["after"]
    assert said == pytest.approx(loss_by_transformers(made.path, texts, 24), rel=1e-5)
    with pytest.raises(ModelUnavailableError, match=r"not one weight does after rounding to torch\.bfloat16"):
        tune(place, tmp_path / "n", tmp_path / "half", learning_rate=1e-12)
    assert not (tmp_path / "n").exists()


def test_losses_on_the_way_are_float32(place: Path, tmp_path: Path) -> None:
    """Where training multiplies in bfloat16, held-out losses do not: with next to no steps they do not move."""
    made = tune(place, tmp_path / "m", learning_rate=1e-8, precision="bfloat16")
    looks = [row["held_out_loss"] for row in csv.DictReader((made.path / "loss.csv").read_text().splitlines())]
    losses = [float(look) for look in looks if look]
    assert len(losses) == 4
    assert max(losses) - min(losses) < 2e-4
    assert losses == sorted(losses, reverse=True)


def test_a_routers_own_loss_counts_where_the_model_says_so(place: Path, tmp_path: Path) -> None:
    """It is in the training loss, not in the losses before and after, and SOURCE.json has its weight."""
    shutil.copytree(place / "qwen2-moe", tmp_path / "base")
    configured(output_router_logits=True, router_aux_loss_coef=10.0)(tmp_path / "base")
    made = tune(place, tmp_path / "m", tmp_path / "base", epochs=0.5)
    plain = tune(place, tmp_path / "plain", "qwen2-moe", epochs=0.5)
    assert (made.source["router_auxiliary_loss"], plain.source["router_auxiliary_loss"]) == (10.0, None)
    assert made.source["loss"]["held_out"]["before"] == plain.source["loss"]["held_out"]["before"]
    first = [
        float(list(csv.DictReader((twin.path / "loss.csv").read_text().splitlines()))[1]["training_loss"])
        for twin in (made, plain)
    ]
    assert first[0] > first[1] + 10


def test_nothing_of_the_trainer_is_seen(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No line on the terminal and no file in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    tune(place, tmp_path / "out" / "m", epochs=0.5, precision="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stopped", ["reading instructions", "training", "measuring the twin"])
def test_an_interrupted_run_leaves_nothing(stopped: str, place: Path, tmp_path: Path) -> None:
    """Wherever Ctrl-C comes, there is no folder, finished or half-made."""

    def tell(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if step == stopped and (done or not total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(place, tmp_path / "m", tell=tell)
    assert not list(tmp_path.iterdir())


def test_training_is_told_step_by_step(place: Path, tmp_path: Path) -> None:
    """Each step with how many there are and its loss."""
    told: list[tuple[int, int, str]] = []

    def tell(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        if total:
            told.append((done, total, note))

    tune(place, tmp_path / "m", epochs=0.5, tell=tell)
    assert [(done, total) for done, total, _ in told] == [(step, 4) for step in range(5)]
    assert all(note.startswith("loss ") for _, _, note in told[1:])


def test_a_loss_that_rises_makes_no_model(place: Path, tmp_path: Path) -> None:
    """A rate far too high: refused, with both losses and the remedy."""
    with pytest.raises(ModelUnavailableError, match=r"it went from .* made; lower --learning-rate \(0\.9\)"):
        tune(place, tmp_path / "m", learning_rate=0.9)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_run(place: Path, tmp_path: Path) -> None:
    """Weights that overflow: the step is named and nothing is kept."""
    from sparcom_models.tune.train import _Watch

    watch = _Watch(split([Example(str(n), [1, 2], [1, 2]) for n in range(20)], TuneSettings()), TuneSettings(), print)
    state = transformers.TrainerState(global_step=3, max_steps=9)
    for logs in ({"loss": float("nan"), "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": float("inf")}):
        with pytest.raises(ModelUnavailableError, match="at step 3 of 9"):
            watch.on_log(None, state, None, logs=logs, model=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 3}, "all 30 are longer than 3 tokens, the shortest has 4"),
        ({"held_out": 0.01}, "0.01 of 30 usable instructions leaves 0 and 30"),
        ({"held_out": 0.99}, "leaves 30 and 0"),
        ({"max_length": 513}, "at most the model's context of 512 tokens; it is 513"),
        ({"data": "empty"}, "holds no instruction"),
        ({"data": "strange"}, "the largest is 60"),
        ({"data": "chat"}, "messages go with prompt_format 'chat'"),
    ],
)
def test_instructions_that_cannot_be_tuned_on_are_refused(
    settings: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    """With the rule, the value and the remedy, before anything is computed."""
    contents = {
        "empty": "\n",
        "strange": '{"id": "a", "token_ids": [3, 60]}',
        "chat": '{"id": "a", "messages": [{"role": "user", "content": "A"}]}',
    }
    if "data" in settings:
        settings = {**settings, "data": tmp_path / "in.jsonl"} | {"content": contents[settings["data"]]}
        (tmp_path / "in.jsonl").write_text(settings.pop("content"))
    with pytest.raises(InvalidInputError, match=message):
        tune(place, tmp_path / "m", **settings)
    assert not (tmp_path / "m").exists()


def without_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()


def without_a_layer(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    save_file({name: value for name, value in weights.items() if ".1.mlp." not in name}, base / "model.safetensors")


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (shutil.rmtree, ModelUnavailableError, "is a folder, or one of smollm2-135m-instruct"),
        (without_weights, ModelUnavailableError, "has its weights in safetensors files"),
        (without_a_layer, ModelUnavailableError, "lacks 3, which would be random: model.layers.1.mlp"),
        (configured(model_type="unheard-of"), ModelUnavailableError, "config.json that transformers knows"),
        (configured(quantization_config={"quant_method": "gptq", "bits": 4}), UnsupportedModelError, "gptq"),
        (
            configured(architectures=["LlamaForSequenceClassification"]),
            UnsupportedModelError,
            "is LlamaForSequenceClassification. Give another --model",
        ),
        (configured(model_type="t5", architectures=["T5Model"]), UnsupportedModelError, "is T5Model"),
    ],
)
def test_models_that_cannot_be_tuned_are_refused(
    break_it: Callable[[Path], None], error: type[Exception], message: str, place: Path, tmp_path: Path
) -> None:
    """With what is wrong and what to do; never trained with weights that are not the model's."""
    shutil.copytree(place / "llama", tmp_path / "base")
    break_it(tmp_path / "base")
    with pytest.raises(error, match=message):
        tune(place, tmp_path / "m", tmp_path / "base")
    assert not (tmp_path / "m").exists()

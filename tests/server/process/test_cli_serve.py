"""`sparcom serve`: options become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sparcom_cli.serve import SERVER_OPTIONS, parse_models, serve
from sparcom_data.errors import InvalidInputError


def test_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default name is the path's last part; a path may contain "="."""
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_models(("/models/base/", "tuned=/models/x", "a=b", "org/hub-model")) == {
        "base": "/models/base/",
        "tuned": "/models/x",
        "a=b": "a=b",
        "hub-model": "org/hub-model",
    }


@pytest.mark.parametrize("values", [("a", "x/a"), ("=x",), ("x=",)])
def test_bad_model_names_are_refused(values: tuple[str, ...]) -> None:
    """Names must be unique and not empty."""
    with pytest.raises(click.BadParameter):
        parse_models(values)


def test_options_reach_server_and_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option sets the setting of its name."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("sparcom_server.run.run_server", lambda starters, settings: seen.update(s=starters, t=settings))
    made: list[Any] = []
    monkeypatch.setattr("sparcom_extractor.settings.EngineSettings", lambda **given: made.append(given))
    monkeypatch.setattr("sparcom_cli.serve._require_engine", lambda: None)
    monkeypatch.setattr("sparcom_extractor.launch.listed.check_model", lambda _: None)
    words = {
        "model": "n=m", "host": "::1", "port": 9, "max-queued-jobs": 3, "max-body-mib": 2, "max-instructions": 11,
        "max-connections": 12, "max-event-streams": 13, "allowed-host": "lab", "dtype": "float32",
        "max-model-len": 5, "max-num-batched-tokens": 6, "max-num-seqs": 7, "kv-cache-gib": 0.5,
        "tensor-parallel-size": 2, "pipeline-parallel-size": 1, "revision": "v1", "quantization": "fp8",
    }  # fmt: skip
    arguments = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    result = CliRunner().invoke(serve, [*arguments, "--data-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    settings = seen["t"]
    assert (settings.host, settings.port, settings.data_dir) == ("::1", 9, tmp_path)
    assert (settings.max_queued_jobs, settings.max_body_bytes, settings.max_instructions) == (3, 2 * 2**20, 11)
    assert (settings.max_connections, settings.max_event_streams, settings.allowed_hosts) == (12, 13, ("lab",))
    assert list(seen["s"]) == ["n"]
    assert made == [
        {
            "model": "m", "name": "n", "metrics": True, "dtype": "float32",
            "max_model_len": 5, "max_num_batched_tokens": 6,
            "max_num_seqs": 7, "gpu_memory_utilization": None, "kv_cache_gib": 0.5,
            "tensor_parallel_size": 2, "pipeline_parallel_size": 1, "revision": "v1", "quantization": "fp8",
        }
    ]  # fmt: skip


def test_names_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPARCOM_ALLOWED_HOSTS holds names separated by spaces, for containers; if empty, it allows no further names."""
    for value, names in {"a.example b": ("a.example", "b"), "": (), "*": ("*",)}.items():
        monkeypatch.setenv("SPARCOM_ALLOWED_HOSTS", value)
        assert serve.make_context("serve", ["--model", "m"]).params["allowed_hosts"] == names


def test_defaults_are_those_of_the_settings() -> None:
    """The command has the defaults of the settings."""
    from sparcom_server.settings import ServerSettings

    chosen = serve.make_context("serve", ["--model", "m"]).params
    settings = ServerSettings()
    for name in ("host", "port", "data_dir", *SERVER_OPTIONS):
        assert chosen[name] == getattr(settings, name), name
    assert chosen["max_body_mib"] * 2**20 == settings.max_body_bytes


def test_bad_engine_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A wrong dtype is an error before the server listens."""
    arguments = ["--model", "m", "--dtype", "float17", "--data-dir", str(tmp_path / "data")]
    result = CliRunner().invoke(serve, arguments)
    assert isinstance(result.exception, InvalidInputError | ModuleNotFoundError)
    assert not (tmp_path / "data").exists()


def test_a_model_that_cannot_load_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a model is an immediate error, as for `sparcom extract`."""
    monkeypatch.setattr("sparcom_server.run.run_server", lambda *_: pytest.fail("the server was started"))
    result = CliRunner().invoke(serve, ["--model", str(tmp_path), "--data-dir", str(tmp_path / "data")])
    assert isinstance(result.exception, InvalidInputError)
    assert "a model's folder must hold config.json" in str(result.exception)
    assert not (tmp_path / "data").exists()


def test_a_server_needs_a_model_option() -> None:
    """Without --model, the exit status is 2."""
    assert CliRunner().invoke(serve, []).exit_code == 2

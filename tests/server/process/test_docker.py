"""The image and the compose file call the command with valid options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from sparcom_cli.serve import serve

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"


def test_the_image_runs_the_command() -> None:
    """The Dockerfile's CMD is a valid command line of `sparcom serve`."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])
    assert command[0] == "serve"
    settings = serve.make_context("serve", command[1:]).params
    assert (settings["host"], settings["data_dir"]) == ("0.0.0.0", Path("/data"))  # noqa: S104


def test_the_image_copies_every_package() -> None:
    """Each folder that pyproject.toml builds from is copied to the image and not ignored."""
    packages = set(re.findall(r'"(\w+)/sparcom_\w+"', (ROOT / "pyproject.toml").read_text()))
    assert len(packages) == 5
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text()
    for name in packages:
        assert f"COPY {name} {name}\n" in dockerfile
        assert f"!{name}\n" in ignored


def compose(**environment: str) -> Any:
    """Return docker-compose.yml with ${NAME:-default} replaced, as by Compose."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(*found.groups()), COMPOSE.read_text())
    assert "$" not in text
    return yaml.safe_load(text)


def settings(service: Any) -> dict[str, Any]:
    """Return the parameters of `sparcom serve` in the command line of a service."""
    assert service["command"][0] == "serve"
    return serve.make_context("serve", service["command"][1:]).params


def test_compose_runs_the_command() -> None:
    """Both services have a valid command line of `sparcom serve`; one has a GPU."""
    services = compose()["services"]
    for service in services.values():
        given = settings(service)
        assert (given["port"], given["tensor_parallel_size"]) == (8000, 1)
        assert given["models"] == ("/models/smollm2-135m-instruct",)
        assert service["ports"] == ["127.0.0.1:8000:8000"]
        assert service["hostname"] == "sparcom"
        assert "SPARCOM_ALLOWED_HOSTS" in service["environment"]
    (device,) = services["sparcom"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["count"], device["capabilities"]) == (1, ["gpu"])
    assert services["sparcom-cpu"]["profiles"] == ["cpu"]


def test_compose_supports_several_gpus() -> None:
    """The number of visible GPUs, and of GPUs per model, are settings."""
    service = compose(SPARCOM_GPU_COUNT="4", SPARCOM_TENSOR_PARALLEL_SIZE="2")["services"]["sparcom"]
    assert settings(service)["tensor_parallel_size"] == 2
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 4
    assert "CUDA_VISIBLE_DEVICES" in service["environment"]


def test_compose_keeps_downloads() -> None:
    """The Hub's token is passed in; downloads go to a volume or folder at the path that the image uses."""
    for place, volume in (({}, "cache"), ({"SPARCOM_CACHE": "/srv/cache"}, "/srv/cache")):
        described = compose(**place)
        for service in described["services"].values():
            assert "HF_TOKEN" in service["environment"], "passed on, without a value in the file"
            assert f"{volume}:/cache" in service["volumes"]
        assert set(described["volumes"]) == {"archives", "cache"}
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.findall(r"(HF_HOME|VLLM_CACHE_ROOT)=/cache/", dockerfile) == ["HF_HOME", "VLLM_CACHE_ROOT"]
    assert "chown sparcom:sparcom /data /models /cache" in dockerfile


def test_compose_needs_a_key_for_other_addresses() -> None:
    """The server learns at which address its port is published: at any but a loopback address, it needs a key."""
    for environment in ({}, {"SPARCOM_ADDRESS": "0.0.0.0"}):  # noqa: S104
        address = environment.get("SPARCOM_ADDRESS", "127.0.0.1")
        for service in compose(**environment)["services"].values():
            assert f"SPARCOM_PUBLISHED_ADDRESS={address}" in service["environment"]
            assert service["ports"] == [f"{address}:8000:8000"]
            assert "--allow-anonymous" not in service["command"]
    assert "keys create NAME --data-dir /data" in COMPOSE.read_text()


def test_every_setting_of_compose_is_described() -> None:
    """The comment at the top describes each variable."""
    text = COMPOSE.read_text()
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    names = {*re.findall(r"\$\{(\w+):-", text), "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "SPARCOM_ALLOWED_HOSTS"}
    names.add("SPARCOM_CORS_ORIGINS")
    assert [name for name in sorted(names) if name not in comment] == []

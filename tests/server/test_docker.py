"""The image and the compose file say what the command understands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sparcom_cli.serve import serve

ROOT = Path(__file__).parents[2]


def test_the_image_runs_the_command() -> None:
    """Dockerfile's CMD is a command line of `sparcom serve`."""
    text = (ROOT / "docker" / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])
    assert command[0] == "serve"
    settings = serve.make_context("serve", command[1:]).params
    assert (settings["host"], settings["data_dir"]) == ("0.0.0.0", Path("/data"))  # noqa: S104


def test_the_image_copies_every_package() -> None:
    """Each folder that pyproject.toml builds from is in the image and not ignored."""
    packages = re.findall(r'"(\w+)/sparcom_\w+"', (ROOT / "pyproject.toml").read_text())
    assert len(packages) == 5
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text()
    for name in packages:
        assert f"COPY {name} {name}\n" in dockerfile
        assert f"!{name}\n" in ignored


def test_compose_runs_the_command() -> None:
    """Both services of docker-compose.yml give a command line that `sparcom serve` understands; one has a GPU."""
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        assert service["command"][0] == "serve"
        assert serve.make_context("serve", service["command"][1:]).params["port"] == 8000
        assert (service["hostname"], list(service["environment"])) == ("sparcom", ["SPARCOM_ALLOWED_HOSTS"])
        assert service["ports"][0].startswith("${SPARCOM_ADDRESS:-127.0.0.1}")
    assert "deploy" in services["sparcom"]
    assert services["sparcom-cpu"]["profiles"] == ["cpu"]

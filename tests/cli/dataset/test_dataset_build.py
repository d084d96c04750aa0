"""`sparcom dataset build`: written files, refused inputs, and messages."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparcom_cli.main import main
from sparcom_data.instructions import read_jsonl
from sparcom_hexainst.build.synthetic import synthetic_files, synthetic_instructions
from sparcom_hexainst.categories import CATEGORIES

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return `build(*arguments)`, which runs in a temporary folder and returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def build(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparcom", "dataset", "build", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return build


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Return a folder with twelve prepared instructions per category."""
    folder = tmp_path / "natural"
    folder.mkdir()
    for name in CATEGORIES:
        lines = [
            {"id": f"{name}-{n}", "text": f"Natural {name}{n} one{n} two{n}", "source": f"s:{n}", "license": "MIT"}
            for n in range(12)
        ]
        (folder / f"{name.lower()}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def small_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with one token per word."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `dataset` is not installed")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_synthetic_half_is_written_byte_by_byte(build: Run) -> None:
    """--synthetic-only writes the shipped files, concatenated, under the default name."""
    status, said, err = build("--synthetic-only")
    assert (status, err) == (0, "")
    assert said == "Wrote hexainst.jsonl: 600 instructions in 6 categories, 600 synthetic\n"
    assert Path("hexainst.jsonl").read_bytes() == b"".join(path.read_bytes() for path in synthetic_files())


def test_skipped_instructions_complement_the_rest(build: Run) -> None:
    """--skip n starts after the first n per category; both parts together hold each instruction once."""
    for name, options in (("first", ("--per-category", 30)), ("rest", ("--skip", 30, "--per-category", 70))):
        status, _, err = build("--synthetic-only", *options, "--output", name)
        assert (status, err) == (0, "")
    first, rest = ([item.id for item in read_jsonl(Path(name))] for name in ("first", "rest"))
    assert (len(first), len(rest)) == (180, 420)
    assert sorted(first + rest) == sorted(item.id for item in synthetic_instructions())
    status, _, err = build("--synthetic-only", "--skip", 30, "--output", "more")
    assert status == 1
    assert "instructions per category after the first 30 must be 1 to 70 in the synthetic half; got 100" in err
    assert not Path("more").exists()


def test_both_halves_are_built_twice_to_the_same_bytes(build: Run, prepared: Path) -> None:
    """A folder of sources gives both halves, with all required fields per line; a second build gives equal bytes."""
    for name in ("a.jsonl", "b.jsonl"):
        status, said, _ = build("--natural", prepared, "--per-category", 10, "--output", name)
        assert status == 0
        assert said == f"Wrote {name}: 120 instructions in 6 categories, 60 synthetic and 60 natural\n"
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    lines = [json.loads(line) for line in Path("a.jsonl").read_bytes().splitlines()]
    assert len(lines) == 120
    for line in lines:
        assert all(line[field] for field in ("id", "category", "half", "source", "license"))
        assert line["sha256"] == hashlib.sha256(line["text"].encode()).hexdigest()
        assert (line.get("metadata") is not None) == (line["half"] == "synthetic")
    counts = {(line["category"], line["half"]): 0 for line in lines}
    for line in lines:
        counts[line["category"], line["half"]] += 1
    assert counts == {(name, half): 10 for name in CATEGORIES for half in ("synthetic", "natural")}


def test_another_seed_draws_other_instructions(build: Run, prepared: Path) -> None:
    """--seed changes the draw, not the synthetic half."""
    for seed in (0, 1):
        build("--natural", prepared, "--per-category", 6, "--seed", seed, "--output", f"{seed}.jsonl")
    first, second = (read_jsonl(Path(f"{seed}.jsonl")) for seed in (0, 1))
    assert first[:36] == second[:36] == synthetic_instructions(6)
    assert first[36:] != second[36:]


def test_an_equal_file_is_left_alone(build: Run) -> None:
    """A file with equal content is not rewritten, and a message reports it."""
    build("--synthetic-only", "--output", "a.jsonl")
    before = Path("a.jsonl").stat().st_mtime_ns
    status, said, _ = build("--synthetic-only", "--output", "a.jsonl")
    assert status == 0
    assert said.startswith("Nothing to do, already up to date: a.jsonl: 600 instructions")
    assert Path("a.jsonl").stat().st_mtime_ns == before


def test_a_different_file_is_replaced_only_on_request(build: Run) -> None:
    """A file with other content is refused and stays; --overwrite replaces it."""
    Path("a.jsonl").write_text("mine\n")
    status, _, err = build("--synthetic-only", "--output", "a.jsonl")
    assert status == 1
    assert err == "error: a.jsonl already exists with other contents; choose another --output or --overwrite\n"
    assert Path("a.jsonl").read_text() == "mine\n"
    status, said, _ = build("--synthetic-only", "--output", "a.jsonl", "--overwrite")
    assert status == 0
    assert said.startswith("Wrote a.jsonl")
    assert len(read_jsonl(Path("a.jsonl"))) == 600


def test_missing_sources_are_all_named(build: Run, prepared: Path) -> None:
    """Both missing sources are named with a remedy; nothing is written."""
    (prepared / "qa.jsonl").unlink()
    (prepared / "sum.jsonl").unlink()
    status, _, err = build("--natural", prepared)
    assert status == 1
    first, second = err.splitlines()
    assert first.startswith(f"error: QA: {prepared} has neither qa.jsonl (prepared instructions) nor TriviaQA")
    assert second.startswith(f"SUM: {prepared} has neither sum.jsonl (prepared instructions) nor FLAN Collection")
    assert all("Put it there, or omit --natural" in line for line in (first, second))
    assert not Path("hexainst.jsonl").exists()


def test_too_few_instructions_are_reported(build: Run, prepared: Path) -> None:
    """Sources with fewer than 100 instructions are named; no smaller set is built silently."""
    status, _, err = build("--natural", prepared)
    assert status == 1
    assert len(err.splitlines()) == 6
    assert "100 natural instructions are needed; there are 12 in" in err
    assert not Path("hexainst.jsonl").exists()


def test_an_id_of_the_synthetic_half_is_refused(build: Run, prepared: Path) -> None:
    """A prepared line must not reuse an id of the synthetic half, since two items would become one."""
    text = (prepared / "cls.jsonl").read_text().replace('"CLS-4"', '"cls-s-0004"')
    (prepared / "cls.jsonl").write_text(text)
    status, _, err = build("--natural", prepared, "--per-category", 12)
    assert status == 1
    assert "'cls-s-0004' occurs 2 times" in err
    assert not Path("hexainst.jsonl").exists()


def test_a_length_matched_subset(build: Run, tmp_path: Path) -> None:
    """Lengths of equal rank agree, the kept number is printed, and a smaller tolerance keeps fewer."""
    small_tokenizer(tmp_path)
    kept = {}
    for tolerance in ("0", "0.05", "0.2"):
        arguments = ("--match-length", "--tokenizer", tmp_path, "--length-tolerance", tolerance, "--output", tolerance)
        status, said, _ = build("--synthetic-only", *arguments)
        assert status == 0
        items = read_jsonl(Path(tolerance))
        counts = [sorted(len(item.readable.split()) for item in items if item.category == name) for name in CATEGORIES]
        kept[tolerance] = len(counts[0])
        assert said.startswith(f"Kept {kept[tolerance]} of 100 instructions per category; their token counts")
        for rank in zip(*counts, strict=True):
            assert (max(rank) - min(rank)) / min(rank) <= float(tolerance)
    assert 0 < kept["0"] < kept["0.05"] < kept["0.2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--match-length",), "give the model's folder with --tokenizer"),
        (("--tokenizer", "x"), "require --match-length"),
        (("--synthetic-only", "--natural", "x"), "drop --natural and --revision"),
        (("--synthetic-only", "--revision", "flan=main"), "drop --natural and --revision"),
        (("--natural", "x", "--revision", "flan=main"), "drop one of them"),
        (("--revision", "imagenet=main"), "got 'imagenet'"),
        (("--revision", "flan"), "SOURCE=COMMIT"),
        (("--length-tolerance", "1"), "--length-tolerance"),
        (("--per-category", "0"), "--per-category"),
        (("--skip", "20"), "add --synthetic-only"),
        (("--synthetic-only", "--skip", "100"), "--skip"),
    ],
)
def test_conflicting_options_are_wrong_usage(
    arguments: tuple[str, ...], message: str, build: Run, tmp_path: Path
) -> None:
    """Status 2 with the rule, before anything is read or written."""
    status, _, err = build(*arguments)
    assert status == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--natural", "gone"), "gone is not one. Give another path"),
        (("--synthetic-only", "--match-length", "--tokenizer", "gone"), "gone has none. Give another path"),
    ],
)
def test_a_missing_input_is_a_one_line_error(
    arguments: tuple[str, ...], message: str, build: Run, tmp_path: Path
) -> None:
    """A missing folder or tokenizer gives status 1, one sentence and no file."""
    status, _, err = build(*arguments)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_option(build: Run) -> None:
    """--help names all options and the default source of the natural half."""
    status, said, _ = build("--help")
    assert status == 0
    for option in (
        "--output", "--natural", "--synthetic-only", "--per-category", "--skip", "--seed", "--revision",
        "--match-length", "--tokenizer", "--length-tolerance", "--overwrite", "Hugging Face Hub", "600 natural ones",
    ):  # fmt: skip
        assert option in " ".join(said.split())

"""What differs between a model and its twin beside the tuning is said: part, report, tables, command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from click.testing import CliRunner

from sparcom_analysis import instruction_specific_neurons, match_twins
from sparcom_analysis.schema.alteration import TwinFacts
from sparcom_analysis.summary.twin import twin_facts
from sparcom_cli.analyze import analyze as command
from sparcom_data.archive import open_archive
from sparcom_data.storage import DurableStore
from sparcom_data.testing import write_random_archive, write_random_moe_archive

Change = Callable[[dict[str, Any]], None]


def attributes(path: Path, change: Change) -> None:
    """Change what an archive says of itself."""
    file = path / "zarr.json"
    held = json.loads(file.read_text())
    change(held["attributes"]["sparcom"])
    file.write_text(json.dumps(held))


def tokenizer(letter: str) -> Change:
    """Another tokenizer."""
    return lambda held: held["model"].update(tokenizer_sha256=letter * 64)


def facts_of(base: Path, tuned: Path) -> TwinFacts:
    """Of two archives on disk."""
    archives = open_archive(base), open_archive(tuned)
    left, right = (instruction_specific_neurons(archive) for archive in archives)
    return twin_facts(match_twins(left, right, archives), archives)


def test_a_twin_that_is_one_has_no_notes(tmp_path: Path) -> None:
    """The same instructions, tokens, tokenizer and format: there is nothing to say, and a note is not made up."""
    for name in ("base", "tuned"):
        write_random_archive(tmp_path / f"{name}.zarr")
        attributes(tmp_path / f"{name}.zarr", tokenizer("e"))
        attributes(tmp_path / f"{name}.zarr", lambda held: held.update(state="complete"))
    facts = facts_of(tmp_path / "base.zarr", tmp_path / "tuned.zarr")
    assert (facts.notes, facts.same_tokenizer, facts.state) == ([], True, "complete")
    assert (facts.different_tokens, facts.different_categories) == (0, 0)


def test_every_difference_beside_the_tuning_has_a_note(tmp_path: Path) -> None:
    """Architecture, tokenizer, format, an extraction that had not ended, other tokens, other categories."""
    base, tuned = tmp_path / "base.zarr", tmp_path / "tuned.zarr"
    write_random_archive(base)
    write_random_archive(tuned, seed=1, categories=("CLS", "X"), failed=(0,))
    attributes(base, tokenizer("e"))
    for change in (
        tokenizer("f"),
        lambda held: held["model"].update(architecture="Other"),
        lambda held: held["capture"].update(prompt_format="chat", add_special_tokens=False),
        lambda held: held.update(state="open"),
    ):
        attributes(tuned, change)
    facts = facts_of(base, tuned)
    assert (facts.architecture, facts.prompt_format, facts.same_tokenizer) == ("Other", "chat", False)
    assert (facts.state, facts.different_categories) == ("open", 5)
    assert facts.notes == [
        "The architectures differ: RandomForTests (base), Other (tuned).",
        "The models have different tokenizers.",
        "The prompts were formatted differently: raw (base), chat (tuned).",
        "Special tokens were added to the prompts of one of the models alone.",
        "The extraction of the tuned archive had not ended when it was read: 9 of its 10 instructions are complete.",
        f"{facts.different_tokens} of the 9 instructions did not become the same tokens in both models: part of what "
        "differs is the text.",
        "5 of the 9 instructions have another category in the tuned archive; the base archive's categories are used.",
    ]
    attributes(tuned, lambda held: held.update(state="complete"))
    assert "The tuned archive is not whole: 9 of its 10 instructions are complete." in facts_of(base, tuned).notes


def test_of_counts_it_is_said_that_tokens_are_not_known(tmp_path: Path) -> None:
    """An archive of counts holds no token ids; a tokenizer that an archive does not name is not taken as the same."""
    base, tuned = tmp_path / "base.zarr", tmp_path / "tuned.zarr"
    write_random_archive(base)
    write_random_archive(tuned, granularity="count")
    facts = facts_of(base, tuned)
    assert facts.same_tokenizer is None
    assert "Whether both models read the same tokens is not known: archives of counts hold no token ids." in facts.notes


@pytest.mark.parametrize("write", [write_random_archive, write_random_moe_archive])
def test_notes_are_shown_wherever_the_alteration_is(write: Any, tmp_path: Path, undrawn: None) -> None:
    """Report, tables 1 and 2, and the command say them, for dense models and mixtures."""
    for name in ("base", "tuned"):
        write(tmp_path / f"{name}.zarr", granularity="count")
    attributes(tmp_path / "tuned.zarr", lambda held: held["model"].update(architecture="Other"))
    options = ["--resamples", "0", "--permutations", "0", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(
        command, [str(tmp_path / "base.zarr"), "--tuned", str(tmp_path / "tuned.zarr"), *options]
    )
    assert result.exit_code == 0, result.output
    said = "The architectures differ: RandomForTests (base), Other (tuned)."
    tables = [tmp_path / "out" / "tables" / f"{name}_alteration.md" for name in ("isn", "ise")]
    shown = [path for path in tables if path.exists()]
    assert len(shown) == (1 if write is write_random_archive else 2)
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f'class="note">{said} Whether both models' in report.replace("&#39;", "'")
    assert said in result.output
    for path in shown:
        assert said in path.read_text(encoding="utf-8")


def test_nothing_in_common_is_refused_before_the_first_pass(tmp_path: Path) -> None:
    """The tables of instructions alone decide: no row is read, and nothing is said to be done."""
    for name in ("base", "tuned"):
        write_random_archive(tmp_path / f"{name}.zarr", per_category=2)
    group = zarr.open_group(DurableStore(tmp_path / "tuned.zarr"), mode="r+", use_consolidated=False)
    group["instruction/id"][:] = [f"z{k}" for k in range(4)]  # type: ignore[index]
    with_twin = ["--tuned", str(tmp_path / "tuned.zarr")]
    for arguments, said in (
        (with_twin, "there is none (of 4 and 4)"),
        (["--matched-tokens", "500"], "an analysis needs at least 2 complete instructions with at least 500 prompt"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparcom_analysis.pipeline.measure", lambda _job: pytest.fail("rows were read"))
            call = [str(tmp_path / "base.zarr"), "--output", str(tmp_path / "out"), *arguments]
            result = CliRunner().invoke(command, call)
        assert said in str(result.exception)

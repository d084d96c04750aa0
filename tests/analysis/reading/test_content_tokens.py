"""`--tokens content` leaves what a template or the tokenizer wrote out of T and of every count, against NumPy alone."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from numpy.typing import NDArray

from sparcom_analysis import (
    activation_counts,
    activation_frequencies,
    analyze,
    expert_frequencies,
    instruction_experts,
    instruction_specific_neurons,
    pooled_counts,
)
from sparcom_analysis.archive.rows import row_spans
from sparcom_analysis.archive.counted_rows import counted_rows
from sparcom_analysis.matching import match_twins
from sparcom_cli.analyze import analyze as command
from sparcom_data.archive import open_archive
from sparcom_data.errors import IncompleteArchiveError, InvalidInputError, UnsupportedArchiveError
from sparcom_data.testing import write_random_archive

QUICK: dict[str, Any] = {"resamples": 0, "permutations": 0, "match_tokens": False}


class Plain:
    """The same archive through zarr and NumPy, one instruction at a time; only rows of content."""

    def __init__(self, path: str | Path) -> None:
        self.group = zarr.open_group(path, mode="r")
        self.complete = np.flatnonzero(self.group["instruction/state"][:] == 1)  # type: ignore[index]
        self.categories = [str(self.group["instruction/category"][k]) for k in self.complete]  # type: ignore[index]

    def column(self, name: str, k: int) -> NDArray[Any]:
        """Rows of content of instruction k."""
        start, length = (int(self.group[f"instruction/{one}"][k]) for one in ("token_start", "token_length"))  # type: ignore[index, arg-type]
        rows = slice(start, start + length)
        return np.asarray(self.group[name][rows])[np.asarray(self.group["token/origin"][rows]) == 0]  # type: ignore[index]

    def frequencies(self, k: int, component: str) -> NDArray[np.float64]:
        """p of equations 6 and 8."""
        name = f"{component}/active"
        masks = np.unpackbits(self.column(name, k), axis=-1, bitorder="little", count=self.group[name].attrs["size"])
        if component != "expert_neuron":
            return masks.mean(axis=0)  # type: ignore[no-any-return]
        chosen = self.column("router/expert", k)
        return np.stack([(masks * (chosen == e)[..., None]).sum(axis=2) for e in range(6)], axis=2).mean(axis=0)  # type: ignore[no-any-return]

    def sets(self, component: str, epsilon: float) -> list[set[int]]:
        """Equations 7 and 9."""
        found = []
        for k in self.complete:
            p = self.frequencies(int(k), component).ravel()
            least = np.sort(p)[::-1][int(np.ceil(epsilon * p.size)) - 1]
            found.append(set(np.flatnonzero((p >= least) & (p > 0)).tolist()))
        return found

    def similarity(self, component: str, epsilon: float) -> list[list[float]]:
        """Equation 10."""
        sets, labels = self.sets(component, epsilon), list(dict.fromkeys(self.categories))
        pairs = {(one, other): [] for one, other in product(labels, labels)}  # type: ignore[var-annotated]
        for (a, one), (b, other) in product(zip(sets, self.categories, strict=True), repeat=2):
            pairs[one, other].append(len(a & b) / len(a | b) if a | b else 0.0)
        return [[float(np.mean(pairs[one, other])) for other in labels] for one in labels]


@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_a_dense_archive_gives_what_numpy_gives_of_the_content(tmp_path: Path, block_bytes: int, undrawn: None) -> None:
    """T, similarity and facts are those of rows with origin 0; without the option nothing changes to the bit."""
    write_random_archive(tmp_path / "a.zarr", origins=True, failed=(3,), lengths=(6, 30))
    plain = Plain(tmp_path / "a.zarr")
    options: dict[str, Any] = {"epsilon": 0.2, "block_bytes": block_bytes, **QUICK}
    metrics = analyze(tmp_path / "a.zarr", tmp_path / "out", counted_tokens="content", **options).metrics
    np.testing.assert_allclose(metrics.isn_similarity.matrix, plain.similarity("neuron", 0.2), rtol=0, atol=1e-12)
    origins = [np.asarray(plain.column("token/origin", int(k))) for k in plain.complete]
    assert metrics.instructions.tokens == sum(map(len, origins))
    assert metrics.settings.counted_tokens == "content"
    group = plain.group
    lengths, template, special = (
        int(np.asarray(group[f"instruction/{name}_length"][:])[plain.complete].sum())  # type: ignore[index]
        for name in ("prompt", "template", "special")
    )
    part = metrics.instructions.origins
    assert part is not None
    assert (part.prompt, part.template, part.special) == (lengths, template, special)
    assert part.share == (template + special) / lengths
    assert metrics.instructions.template_rows == template + special == lengths - metrics.instructions.tokens
    assert metrics.warnings == []
    assert "prompt tokens of content" in (tmp_path / "out" / "report.html").read_text()


def test_all_tokens_are_what_they_were(tmp_path: Path) -> None:
    """With `all` an archive that knows origins gives the sets of one that does not."""
    for origins in (True, False):
        write_random_archive(tmp_path / f"{origins}.zarr", origins=origins)
    new, old = (instruction_specific_neurons(open_archive(tmp_path / f"{origins}.zarr")) for origins in (True, False))
    np.testing.assert_array_equal(new.sets.rows(0, len(new)), old.sets.rows(0, len(old)))
    assert new.token_facts == old.token_facts
    assert new.tokens.tolist() == old.tokens.tolist()


@pytest.mark.parametrize("component", ["neuron", "expert_neuron", "shared_expert_neuron"])
def test_mixtures_give_what_numpy_gives_of_the_content(make_moe, component: Any) -> None:  # type: ignore[no-untyped-def]
    """Every component, the experts, pooled counts and one instruction alone divide by the content's tokens."""
    archive = make_moe(origins=True, failed=(2,), lengths=(6, 30)).archive
    plain, options = Plain(archive.path), {"counted_tokens": "content"}
    found = instruction_specific_neurons(archive, epsilon=0.1, component=component, **options)  # type: ignore[arg-type]
    for k, expected in enumerate(plain.sets(component, 0.1)):
        assert set(np.flatnonzero(found.mask(k).ravel()).tolist()) == expected
    one = int(plain.complete[3])
    p = activation_frequencies(archive, one, None, component, **options)  # type: ignore[arg-type]
    expected_p = plain.frequencies(one, component).reshape(p.shape)
    np.testing.assert_allclose(p, expected_p, atol=1e-12)
    counts = activation_counts(archive, one, None, component, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(counts, np.rint(expected_p * found.tokens[3]))
    experts = instruction_experts(archive, **options)  # type: ignore[arg-type]
    for k, index in enumerate(plain.complete.tolist()):
        chosen = plain.column("router/expert", index)
        expected_f = (chosen[..., None] == np.arange(6)).any(axis=2).mean(axis=0)
        np.testing.assert_allclose(experts.frequencies(k), expected_f, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(expert_frequencies(archive, one, **options), experts.frequencies(3))  # type: ignore[arg-type]
    assert pooled_counts(archive, component=component, **options).tokens.sum() == found.tokens.sum()  # type: ignore[arg-type]


def test_a_tuned_twin_is_compared_over_the_content_of_both(tmp_path: Path, undrawn: None) -> None:
    """Equation 15 over the sets of the content, with T matched beside it; LAPE's tokens are the content's too."""
    for seed in (0, 1):
        write_random_archive(tmp_path / f"{seed}.zarr", origins=True, seed=seed, lengths=(20, 20))
    options = QUICK | {"match_tokens": True, "matched_tokens": 5}
    result = analyze(
        tmp_path / "0.zarr",
        tmp_path / "out",
        tuned=tmp_path / "1.zarr",
        epsilon=0.2,
        counted_tokens="content",
        **options,
    )
    base, tuned = (Plain(tmp_path / f"{seed}.zarr").sets("neuron", 0.2) for seed in (0, 1))
    expected = np.mean([1 - len(a & b) / len(a | b) for a, b in zip(base, tuned, strict=True)])
    assert result.metrics.isn_alteration is not None
    assert result.metrics.isn_alteration.overall.alteration == pytest.approx(expected, abs=1e-12)
    assert result.results.control is not None
    assert result.results.control.neurons[0].matched.token_facts.counted_tokens == "content"
    assert set(result.results.control.neurons[0].matched.tokens.tolist()) == {5}


def test_the_same_tokens_with_other_origins_are_no_twins(make_moe, damage) -> None:  # type: ignore[no-untyped-def]
    """Where content alone is counted, other tokens of the same prompt would be compared: refused, with the first id."""
    base, tuned = (make_moe(origins=True).archive for _ in range(2))
    row = int(tuned.instructions.token_start[4])
    tuned = damage(tuned, "token/origin", slice(row, row + 1), 1)
    sides = [instruction_specific_neurons(one, counted_tokens="content") for one in (base, tuned)]
    with pytest.raises(UnsupportedArchiveError, match=r"of 1 instructions differ, the first is 'i004'.*--tokens all"):
        match_twins(*sides, archives=(base, tuned))
    match_twins(*(instruction_specific_neurons(one) for one in (base, tuned)), archives=(base, tuned))
    with pytest.raises(
        UnsupportedArchiveError, match=r"tokens: content alone, .* in base, special ones counted in tun"
    ):
        match_twins(sides[0], instruction_specific_neurons(tuned))


def test_special_tokens_are_left_out_of_the_content_too(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Both choices together leave out what either does; rows are counted once."""
    archive = make_moe(origins=True, lengths=(12, 30)).archive
    ids = list(range(0, 1000, 3))
    both = instruction_specific_neurons(
        archive, counted_tokens="content", special_tokens="leave_out", special_token_ids=ids
    )
    plain = Plain(archive.path)
    kept = [int((~np.isin(plain.column("token/id", int(k)), ids)).sum()) for k in plain.complete]
    assert both.tokens.tolist() == kept
    rows = both.token_facts.template_rows + both.token_facts.special_rows
    assert sum(kept) + rows == row_spans(archive, "prompt").lengths.sum()


def test_instructions_of_unknown_origin_are_left_out_and_said(make_moe, damage, tmp_path: Path, undrawn: None) -> None:  # type: ignore[no-untyped-def]
    """One row of unknown origin is enough; metrics count the instruction, and a warning names the number."""
    archive = make_moe(origins=True).archive
    for k in (2, 7):
        start = int(archive.instructions.token_start[k])
        archive = damage(archive, "token/origin", slice(start, start + 1), 255)
        for name in ("template", "special"):
            archive = damage(archive, f"instruction/{name}_length", slice(k, k + 1), -1)
    spans = counted_rows(archive, "prompt", counted_tokens="content")
    assert spans.instruction.tolist() == [k for k in range(10) if k not in (2, 7)]
    metrics = analyze(archive, tmp_path, counted_tokens="content", **QUICK).metrics
    assert (metrics.instructions.used, metrics.instructions.left_out.unknown_origin) == (8, 2)
    assert metrics.warnings == ["2 instructions are left out, since where their tokens come from is unknown."]
    archive = damage(archive, "token/origin", slice(None), 255)
    with pytest.raises(IncompleteArchiveError, match=r"prompt rows of content.*10 have tokens of unknown origin"):
        analyze(archive, tmp_path / "none", counted_tokens="content", **QUICK)


@pytest.mark.parametrize(
    ("granularity", "origins", "said"),
    [("count", True, "needs masks of single tokens.*granularity 'token'"), ("token", False, "lacks token/origin")],
)
def test_what_does_not_know_is_refused_before_the_first_pass(
    tmp_path: Path, granularity: Any, origins: bool, said: str
) -> None:
    """Counts and archives of before; base or tuned. The remedy is said, and no folder is made."""
    write_random_archive(tmp_path / "good.zarr", origins=True)
    write_random_archive(tmp_path / "bad.zarr", origins=origins, granularity=granularity)
    for base, tuned in (("bad", None), ("good", "bad")):
        arguments: dict[str, Any] = {"tuned": None if tuned is None else tmp_path / f"{tuned}.zarr"}
        with pytest.raises(UnsupportedArchiveError, match=f"--tokens content.*{said}"):
            analyze(tmp_path / f"{base}.zarr", tmp_path / "out", counted_tokens="content", **arguments)
    assert not (tmp_path / "out").exists()


def test_no_such_choice_is_refused(make_moe) -> None:  # type: ignore[no-untyped-def]
    """Both choices are named."""
    with pytest.raises(InvalidInputError, match="one of all, content; it is 'prompt'"):
        instruction_specific_neurons(make_moe().archive, counted_tokens="prompt")  # type: ignore[arg-type]


def rewritten(path: Path, **changes: Any) -> None:
    """Change the attributes of an archive."""
    fields = json.loads((path / "zarr.json").read_text())
    section = fields["attributes"]["sparcom"]
    section["capture"] |= changes.pop("capture", {})
    section |= changes
    (path / "zarr.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("granularity", ["token", "count"])
def test_a_large_share_of_the_template_is_said(tmp_path: Path, granularity: Any, undrawn: None) -> None:
    """Share, numbers and remedy in metrics, in the report and on standard error; of counts the remedy is another."""
    path = tmp_path / "a.zarr"
    write_random_archive(path, origins=True, lengths=(30, 60), granularity=granularity)
    group = zarr.open_group(path, mode="r")
    prompt, written = (
        int(sum(np.asarray(group[f"instruction/{name}_length"][:]).sum() for name in names))  # type: ignore[index]
        for names in (("prompt",), ("template", "special"))
    )
    assert 1 / 3 < written / prompt < 2 / 3
    arguments = ["--resamples", "0", "--permutations", "0", "--no-match-tokens", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(command, [str(path), *arguments])
    assert result.exit_code == 0, result.output
    start = f"{written / prompt:.0%} of the prompt tokens of the archive ({written:,} of {prompt:,}) were written by"
    (said,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"]
    assert said.startswith(start)
    assert ("Extract again with granularity 'token'" in said) == (granularity == "count")
    assert f"warning: {said}" in result.stderr
    assert start in (tmp_path / "out" / "report.html").read_text()
    if granularity == "token":
        result = CliRunner().invoke(command, [str(path), *arguments, "--tokens", "content"])
        assert "warning" not in result.stderr
        assert "prompt tokens of content" in result.stdout


def test_warnings_of_the_extraction_and_chats_of_unknown_origin_are_said(tmp_path: Path, undrawn: None) -> None:
    """What the extraction warned of is repeated; an old archive of chats is told as such, here the tuned one."""
    for name in ("a", "b"):
        write_random_archive(tmp_path / f"{name}.zarr")
    rewritten(tmp_path / "a.zarr", warnings=["2 of 10 instructions: BOS twice"])
    rewritten(tmp_path / "b.zarr", capture={"prompt_format": "chat"})
    warnings = analyze(tmp_path / "a.zarr", tmp_path / "out", tuned=tmp_path / "b.zarr", **QUICK).metrics.warnings
    assert warnings[0] == "The extraction of the archive warned: 2 of 10 instructions: BOS twice."
    assert warnings[1].startswith("The tuned archive does not say which tokens its chat template wrote.")
    assert len(warnings) == 2

"""Interventions: scale the activation of chosen neurons, or take experts away, while the model runs.

    neurons                  {layer: [neuron, …]}             of dense FFNs       ─┐
    expert_neurons           {layer: {expert: [neuron, …]}}   of routed experts    ├─ with `scale`
    shared_expert_neurons    {layer: [neuron, …]}             of shared experts   ─┘
    experts                  {layer: [expert, …]}             of the router       ─── with `mode`

Layers are numbered like the decoder layers of the model, as in an archive's `layer_ids`. A file holds one intervention
as a JSON object, or a list of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import describe_validation_error
from sparcom_data.schema.metadata import ModelInfo, MoeInfo
from sparcom_data.schema.strict import NUMBER, StrictModel

When = Literal["prompt", "response", "all"]
Mode = Literal["exclude", "zero"]
NONE = "none"
"""Name that stands for no intervention."""
MAX_SCALE = float(np.finfo(np.float32).max)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}$"
_KEY = re.compile(r"0|[1-9][0-9]{0,8}")


def _distinct(ids: tuple[int, ...]) -> tuple[int, ...]:
    twice = [str(one) for one, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"ids must be distinct; {', '.join(twice[:5])} {'occur' if twice[1:] else 'occurs'} twice")
    return tuple(sorted(ids))


def _numbered(value: Any) -> Any:
    """Refuse keys that are no plain numbers: "03" and "3" would be one layer, and one of them would be lost."""
    for key in value if isinstance(value, dict) else ():
        if not _KEY.fullmatch(str(key)) or isinstance(key, bool):
            raise ValueError(f"keys must be numbers such as 3; one is {str(key)[:40]!r}")
    return value


_Number = Annotated[int, Field(ge=0)]
_Id = Annotated[int, Field(ge=0, lt=2**31), NUMBER]
Ids = Annotated[tuple[_Id, ...], Field(min_length=1, fail_fast=True), AfterValidator(_distinct)]
ByLayer = Annotated[dict[_Number, Ids], BeforeValidator(_numbered), Field(min_length=1)]
ByExpert = Annotated[
    dict[_Number, Annotated[dict[_Number, Ids], BeforeValidator(_numbered), Field(min_length=1)]],
    BeforeValidator(_numbered),
    Field(min_length=1),
]


class Intervention(StrictModel):
    """One intervention: a set of neurons with a scale, or a set of experts with a mode.

    scale: factor of the activation output f(gate)·up of these neurons: 0 silences them, 1 changes nothing.
    mode: `exclude`: the router chooses among the other experts, so k experts still run. `zero`: an expert is chosen,
        but its output is dropped; the weights of the others are not renormalized.
    when: tokens to which it applies: of the prompt, of the response, or all.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    neurons: ByLayer | None = None
    expert_neurons: ByExpert | None = None
    shared_expert_neurons: ByLayer | None = None
    scale: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False), NUMBER] | None = None
    experts: ByLayer | None = None
    mode: Mode | None = None
    when: When = "all"

    @model_validator(mode="after")
    def _one_kind(self) -> Intervention:
        if self.name.lower() == NONE:
            raise ValueError(f"name must not be {NONE!r}, which stands for no intervention")
        of_neurons = any((self.neurons, self.expert_neurons, self.shared_expert_neurons))
        if of_neurons == bool(self.experts):
            found = "both" if of_neurons else "neither"
            raise ValueError(
                f"give neurons (neurons, expert_neurons or shared_expert_neurons) or experts; found {found}"
            )
        needed, other = ("scale", "mode") if of_neurons else ("mode", "scale")
        kind = "neurons" if of_neurons else "experts"
        if getattr(self, needed) is None:
            raise ValueError(f"{needed} must be given with {kind}: " + ("0 silences them" if of_neurons else _MODES))
        if getattr(self, other) is not None:
            raise ValueError(f"{other} must not be given with {kind}; remove it")
        return self

    def definition(self) -> str:
        """Return the intervention as JSON, the same for equal interventions."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    def sizes(self) -> dict[str, int]:
        """Return how many neurons or experts the intervention names, by field."""
        found = {name: 0 for name in _TARGETS if getattr(self, name)}
        for name, _, ids in self.sets():
            found[name] += len(ids)
        return found

    def sets(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Yield field, location and ids. location: (layer,), or (layer, expert) for `expert_neurons`."""
        for name in _TARGETS:
            for layer, ids in (getattr(self, name) or {}).items():
                if isinstance(ids, Mapping):
                    yield from ((name, (layer, expert), inner) for expert, inner in ids.items())
                else:
                    yield name, (layer,), ids


_MODES = "'exclude' or 'zero'"
_TARGETS = ("neurons", "expert_neurons", "shared_expert_neurons", "experts")
_FILE = TypeAdapter(list[Intervention])


def read_interventions(path: Path) -> list[Intervention]:
    """Read a file of interventions.

    Raises:
        InvalidInputError: the file cannot be read, holds none, or breaks rules; lists every problem.
    """
    try:
        value = json.loads(path.read_bytes().decode(), object_pairs_hook=_distinct_keys)
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path.name} must be JSON: {error}") from error
    try:
        found = _FILE.validate_python([value] if isinstance(value, dict) else value)
    except ValidationError as error:
        raise InvalidInputError(describe_validation_error(error, path.name)) from error
    if not found:
        raise InvalidInputError(f"{path.name} must hold at least one intervention; the list is empty")
    if problems := duplicate_names(found):
        raise InvalidInputError(problems)
    return found


def _distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"an object must not have two fields of one name; {twice[0]!r} occurs twice")
    return dict(pairs)


def duplicate_names(interventions: Iterable[Intervention]) -> list[str]:
    """Return one sentence per name that several interventions have, with capital letters or not."""
    counts = Counter(one.name.lower() for one in interventions)
    return [
        f"names of interventions must be unique: {name!r} occurs {count} times"
        for name, count in counts.items()
        if count > 1
    ]


def check_interventions(interventions: Sequence[Intervention], model: ModelInfo) -> list[str]:
    """Check that a model can run under these interventions; return one sentence per unusual one.

    Raises:
        InvalidInputError: an id is out of range, or too few experts are left; lists every problem.
    """
    problems, notes = duplicate_names(interventions), list[str]()
    for one in interventions:
        for name, location, ids in one.sets():
            where = f"intervention {one.name!r}, {'.'.join(map(str, (name, *location)))}"
            width, problem = _width(name, location, model)
            if problem := problem or _out_of_range(one, name, ids, width, model.moe):
                problems.append(f"{where}: {problem}")
            elif len(ids) == width:
                done = "dropped" if name == "experts" else "silenced" if one.scale == 0 else f"scaled by {one.scale:g}"
                notes.append(f"{where}: all {width} {_noun(name)} are {done}")
    if problems:
        raise InvalidInputError(problems)
    return notes


def _noun(name: str) -> str:
    return "experts" if name == "experts" else "neurons"


def _out_of_range(one: Intervention, name: str, ids: tuple[int, ...], width: int, moe: MoeInfo | None) -> str:
    """Return why a set of ids does not fit a width, or ""."""
    if ids[-1] >= width:
        return f"ids must be below {width}, the number of {_noun(name)}; one is {ids[-1]}"
    if name == "experts" and one.mode == "exclude" and moe and width - len(ids) < moe.experts_per_token:
        needed, left = moe.experts_per_token, width - len(ids)
        return f"the router chooses {needed} experts per token, and {left} of {width} would be left. Exclude fewer"
    return ""


def _width(name: str, location: tuple[int, ...], model: ModelInfo) -> tuple[int, str]:
    """Return how many neurons or experts there are at a location, and why it does not exist, or ""."""
    layer, moe = location[0], model.moe
    if name == "neurons":
        return model.neurons, _missing(layer, model.layer_ids, "dense FFN layers")
    problem = _missing(layer, moe.layer_ids if moe else [], "MoE layers")
    if problem or moe is None:
        return 0, problem
    if name == "experts":
        return moe.experts, ""
    if name == "shared_expert_neurons":
        return moe.shared_neurons, "" if moe.shared_neurons else "the model has no shared experts. Remove it"
    expert = location[1]
    return moe.neurons, "" if expert < moe.experts else f"experts must be below {moe.experts}; this one is {expert}"


def _missing(layer: int, layers: Sequence[int], what: str) -> str:
    if layer in layers:
        return ""
    if not layers:
        return f"the model has no {what}. Remove it"
    shown = f"{layers[0]} to {layers[-1]}" if list(layers) == [*range(layers[0], layers[-1] + 1)] else str([*layers])
    return f"the {what} of the model are {shown}; there is no layer {layer}"


def matched_random(of: Intervention, model: ModelInfo, seed: int, name: str | None = None) -> Intervention:
    """Return an intervention with as many random ids at each location: the null of a causal claim.

    Ids are drawn without replacement from all of the location, those of `of` included, so that `of` itself is one of
    the equally likely sets if its choice means nothing.

    Args:
        of: the intervention to match, also in scale, mode and tokens.
        model: the model for which the ids are drawn.
        seed: same seed, same ids, whatever else is drawn.
        name: name of the result; by default that of `of` with the seed.

    Raises:
        InvalidInputError: `of` does not fit the model.
    """
    check_interventions([of], model)
    drawn: dict[str, Any] = {}
    for field, location, ids in of.sets():
        width, _ = _width(field, location, model)
        random = np.random.default_rng([seed, _TARGETS.index(field), *location])
        chosen = random.choice(width, size=len(ids), replace=False).tolist()
        layer, *expert = location
        if expert:
            drawn.setdefault(field, {}).setdefault(layer, {})[expert[0]] = chosen
        else:
            drawn.setdefault(field, {})[layer] = chosen
    rest = of.model_dump(include={"scale", "mode", "when"}, exclude_none=True)
    return Intervention(name=name or f"{of.name[:80]} random {seed}", **drawn, **rest)

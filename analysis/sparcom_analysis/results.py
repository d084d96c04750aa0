"""What an analysis computed, before it is put into metrics.json, tables and figures: plain holders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sparcom_analysis.components.lape import Lape
from sparcom_analysis.components.result import ComponentResult
from sparcom_analysis.measures.correlation import ExpertCorrelation
from sparcom_analysis.measures.experts import CategoryExperts, InstructionExperts, TopExperts
from sparcom_analysis.measures.layers import LayerCounts
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.measures.similarity import CategorySimilarity
from sparcom_analysis.reading.populations import Component
from sparcom_analysis.statistics.bootstrap import Interval, MeanIntervals, PairIntervals, Resamples
from sparcom_analysis.statistics.length_control import LengthControl
from sparcom_analysis.statistics.permutation import LabelTests
from sparcom_analysis.tuned.alteration import ExpertAlteration, NeuronAlteration
from sparcom_analysis.tuned.shift import ExpertShift
from sparcom_data.archive import Archive


@dataclass(frozen=True, slots=True)
class NeuronResult:
    """The measures of the neurons of one component; None for what was not computed."""

    neurons: InstructionNeurons
    similarity: CategorySimilarity
    by_layer: LayerCounts
    groups: ComponentResult
    intervals: PairIntervals | None = None
    layer_intervals: MeanIntervals | None = None
    tests: LabelTests | None = None
    lape: Lape | None = None
    altered: NeuronAlteration | None = None


@dataclass(frozen=True, slots=True)
class ExpertResult:
    """The measures of the experts; None for what was not computed.

    share_interval: of the share of choices that the top experts take, (category, layer); moved_interval: of
    `shift.moved`, likewise.
    """

    experts: InstructionExperts
    means: CategoryExperts
    top: TopExperts
    correlation: ExpertCorrelation
    groups: ComponentResult
    intervals: PairIntervals | None = None
    mean_intervals: MeanIntervals | None = None
    tests: LabelTests | None = None
    shift: ExpertShift | None = None
    altered: ExpertAlteration | None = None
    share_interval: Interval | None = None
    moved_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class DeadLayers:
    """Layers of one component in which an instruction has no active neuron at any counted token.

    archive: `base` or `tuned`. instructions: n ids that have such layers. layers: of each of them the model's numbers.
    """

    archive: Literal["base", "tuned"]
    component: Component
    instructions: Sequence[str]
    layers: Sequence[Sequence[int]]

    @classmethod
    def of(cls, archive: Literal["base", "tuned"], neurons: InstructionNeurons) -> DeadLayers:
        """What the pass over the archive found."""
        dead = np.zeros((0, 0), np.bool_) if neurons.dead_layers is None else neurons.dead_layers
        some = np.flatnonzero(dead.any(axis=1)).tolist()
        layers = [[int(neurons.layer_ids[j]) for j in np.flatnonzero(dead[k])] for k in some]
        return cls(archive, neurons.population.component, [neurons.ids[k] for k in some], layers)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that was computed.

    neurons: of each component, the one that the archive is about first. experts: None for a dense model.
    resamples: what intervals were drawn from. twin_resamples: those of the instructions of both archives.
    skipped: what was not computed, by the field of metrics.json, and why. dead: of each component of each archive.
    """

    archive: Archive
    neurons: Sequence[NeuronResult]
    experts: ExpertResult | None
    tuned: Archive | None = None
    control: LengthControl | None = None
    resamples: Resamples | None = None
    twin_resamples: Resamples | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    dead: Sequence[DeadLayers] = ()

    @property
    def groups(self) -> list[ComponentResult]:
        """General and unique components of each kind, of experts last."""
        found = [one.groups for one in self.neurons]
        return found if self.experts is None else [*found, self.experts.groups]

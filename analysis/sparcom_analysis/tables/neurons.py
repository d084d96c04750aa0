"""The measures of one component as tables: similarity, layers, instructions. Without a value where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.schema.experts import CorrelationMatrix
from sparcom_analysis.schema.intervals import IntervalBounds
from sparcom_analysis.schema.metrics import CategoryMatrix, LayerMeans, Metrics
from sparcom_analysis.tables.formats import Cell, Table

WITH_SELF = "Mean Jaccard index of ISN sets, equation 10; pairs of an instruction with itself counted."
_BOTH = ("with_self", "without_self")
WITHOUT_SELF = "Mean Jaccard index of ISN sets; pairs of an instruction with itself left out."


def component_tables(view: Metrics, neurons: InstructionNeurons) -> list[Table]:
    """Every table of a component's neurons, whose parts of the metrics are in front."""
    similarity, layers, subject = view.isn_similarity, view.isn_by_layer, view.subject
    title = f"Similarity of categories, {subject}"
    found = [
        similarity_table("isn_similarity", title, similarity, WITH_SELF),
        similarity_table("isn_similarity_without_self", title, view.isn_similarity_without_self, WITHOUT_SELF),
        layer_table(layers, f"Instruction-specific neurons by layer, {subject}"),
        instruction_table(neurons, f"Instructions, {subject}"),
    ]
    if view.intervals is not None:
        both = (similarity, view.isn_similarity_without_self)
        found.append(cells_table("isn_similarity_intervals", f"{title}, with intervals", both, "equation 10"))
        found.append(layer_interval_table(layers, f"Instruction-specific neurons by layer, {subject}, with intervals"))
    return found


def similarity_table(name: str, title: str, similarity: CategoryMatrix, note: str = "") -> Table:
    """One row and one column a category."""
    return matrix_table(name, title, similarity.categories, similarity.matrix, note)


def matrix_table(
    name: str, title: str, categories: Sequence[str], matrix: Sequence[Sequence[float | None]], note: str
) -> Table:
    """A matrix over categories: one row and one column a category."""
    rows: list[list[Cell]] = [[label, *row] for label, row in zip(categories, matrix, strict=True)]
    return Table(name, title, ["category", *categories], rows, note)


def cells_table(
    name: str,
    title: str,
    both: tuple[CategoryMatrix, CategoryMatrix] | tuple[CorrelationMatrix, CorrelationMatrix],
    equation: str,
) -> Table:
    """One row a pair of categories: both versions of an equation, pairs of an instruction with itself counted and left
    out, with their intervals."""
    names = both[0].categories
    rows: list[list[Cell]] = [
        [names[i], names[j], *(cell for part in both for cell in interval_cells(part, part.matrix, i, j))]
        for i in range(len(names))
        for j in range(i, len(names))
    ]
    return Table(
        name,
        title,
        ["category", "other", *(f"{which}{end}" for which in _BOTH for end in ("", "_low", "_high"))],
        rows,
        f"With self: pairs of an instruction with itself counted, as in {equation}. Low and high: bootstrap interval.",
    )


def interval_cells(part: IntervalBounds, values: Sequence[Sequence[float | None]], i: int, j: int) -> list[Cell]:
    """A value and its two ends."""
    ends = [None if bound is None else bound[i][j] for bound in (part.low, part.high)]
    return [values[i][j], *ends]


def layer_table(by_layer: LayerMeans, title: str) -> Table:
    """One row a layer, one column a category: ISNs of an instruction, mean over the category."""
    rows: list[list[Cell]] = [list(row) for row in zip(by_layer.layer_ids, *by_layer.mean_count, strict=True)]
    formats = ["", *[".1f"] * len(by_layer.categories)]
    note = "ISNs of an instruction, mean over the category."
    return Table("isn_by_layer", title, ["layer", *by_layer.categories], rows, note, formats)


def layer_interval_table(by_layer: LayerMeans, title: str) -> Table:
    """One row a category and layer: ISNs of an instruction with their interval."""
    rows: list[list[Cell]] = [
        [name, layer, *interval_cells(by_layer, by_layer.mean_count, i, j)]
        for i, name in enumerate(by_layer.categories)
        for j, layer in enumerate(by_layer.layer_ids)
    ]
    columns = ["category", "layer", "mean", "low", "high"]
    return Table("isn_by_layer_intervals", title, columns, rows, "", ["", "", ".1f", ".1f", ".1f"])


def instruction_table(neurons: InstructionNeurons, title: str) -> Table:
    """One row an instruction: its tokens T, its ISNs, and the least count and p_ij among them; none of an empty set."""
    labels, codes = category_labels(neurons.categories), category_codes(neurons.categories)
    tokens, sizes = neurons.tokens.tolist(), neurons.sizes.tolist()
    rows: list[list[Cell]] = []
    for k, count in enumerate(neurons.minimum_count.tolist()):
        least: list[Cell] = [count, count / tokens[k]] if sizes[k] else [None, None]
        rows.append([neurons.ids[k], labels[codes[k]], tokens[k], sizes[k], *least])
    columns = ["id", "category", "tokens", "isn", "minimum_count", "minimum_p"]
    note = "The least count and p of a neuron of the set come last; an empty set has none."
    return Table("instructions", title, columns, rows, note)

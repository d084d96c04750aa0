"""The results as CSV text (RFC 4180, UTF-8): one function a table. Empty where a value does not exist."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.schema import CategoryMatrix, LayerMeans
from sparcom_analysis.selection import InstructionNeurons


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Header and rows as CSV; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def similarity_table(similarity: CategoryMatrix) -> str:
    """One row and one column a category."""
    named = zip(similarity.categories, similarity.matrix, strict=True)
    return csv_text(["category", *similarity.categories], ([name, *row] for name, row in named))


def layer_table(by_layer: LayerMeans) -> str:
    """One row a layer, one column a category: ISNs of an instruction, mean over the category."""
    columns = zip(by_layer.layer_ids, *by_layer.mean_count, strict=True)
    return csv_text(["layer", *by_layer.categories], columns)


def instruction_table(neurons: InstructionNeurons) -> str:
    """One row an instruction: its tokens T, its ISNs, and the least p_ij that selects (the threshold of equation 7)."""
    labels, codes = category_labels(neurons.categories), category_codes(neurons.categories)
    tokens, sizes = neurons.tokens.tolist(), neurons.sizes.tolist()
    rows = (
        [neurons.ids[k], labels[codes[k]], tokens[k], sizes[k], count, count / tokens[k]]
        for k, count in enumerate(neurons.minimum_count.tolist())
    )
    return csv_text(["id", "category", "tokens", "isn", "minimum_count", "minimum_p"], rows)

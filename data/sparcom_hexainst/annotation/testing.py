"""Synthetic answers for tests: a filled form, as the page would save it."""

from __future__ import annotations

from collections.abc import Mapping

from sparcom_hexainst.annotation.criteria import CATEGORY, SOUND
from sparcom_hexainst.annotation.schema import Answers, Form


def filled(
    form: Form,
    annotator: str,
    comment: str = "",
    by_id: Mapping[str, Mapping[str, str]] | None = None,
    **values: str,
) -> Answers:
    """Return complete answers: sound, of the form's last category. `values` override all items, `by_id` single ones."""
    usual = SOUND | ({CATEGORY: form.categories[-1]} if form.categories else {}) | values
    items = [
        {
            "number": item.number,
            "id": item.id,
            "sha256": item.sha256,
            "answers": {name: {**usual, **(by_id or {}).get(item.id, {})}[name] for name in item.ask},
            "comment": comment,
        }
        for item in form.items
    ]
    return Answers.model_validate(
        {
            "format": "sparcom-annotation",
            "version": 1,
            "kind": form.kind,
            "dataset": form.dataset,
            "form": form.sha256,
            "categories": form.categories,
            "annotator": annotator,
            "complete": True,
            "items": items,
        }
    )

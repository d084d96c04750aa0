"""Turns results into the bytes of every file of the output folder: tables, figures, lists, the report, metrics.json.

Files of the component that the archive is about have plain names; those of a further one end in -COMPONENT.
"""

from __future__ import annotations

from sparcom_analysis.lists.every import every_list
from sparcom_analysis.report.page import render_report
from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics, json_schema
from sparcom_analysis.tables.every import every_table


def render(metrics: Metrics, results: Results) -> dict[str, bytes]:
    """Every file: its path in the folder and its bytes; metrics.json last."""
    from sparcom_analysis.figures import neurons as figures
    from sparcom_analysis.figures.every import every_figure

    views = component_views(metrics)
    tables, drawn = every_table(metrics, views, results), every_figure(metrics, views, results)
    vector = {name: figures.to_svg(figure) for name, figure in drawn.items()}
    return {
        **{f"tables/{name}.csv": table.csv().encode() for name, table in tables.items()},
        **{f"tables/{name}.md": table.markdown().encode() for name, table in tables.items()},
        **{f"tables/{name}.tex": table.latex().encode() for name, table in tables.items()},
        **{f"figures/{name}.svg": data for name, data in vector.items()},
        **{f"figures/{name}.png": figures.to_png(figure) for name, figure in drawn.items()},
        **every_list(metrics, results),
        "report.html": render_report(metrics, views, tables, vector).encode(),
        "metrics.schema.json": json_schema(),
        "metrics.json": (metrics.model_dump_json(indent=2) + "\n").encode(),
    }


def component_views(metrics: Metrics) -> dict[str, Metrics]:
    """The metrics with each component's parts in front, by the ending of its files' names; the first as it is."""
    further = [part.component for part in metrics.components or [] if part.component != metrics.component]
    return {"": metrics, **{f"-{component}": metrics.of(component) for component in further}}

"""From an archive to a folder of results: select, compare, summarise, draw, write.

Files are replaced one by one and each whole; other files in the folder stay. The folder is tried before the pass over
the archive, which may take hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparcom_analysis.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.layers import isn_by_layer
from sparcom_analysis.report import render_report
from sparcom_analysis.rows import Rows
from sparcom_analysis.schema import Metrics
from sparcom_analysis.selection import InstructionNeurons, instruction_specific_neurons
from sparcom_analysis.similarity import category_similarity
from sparcom_analysis.summary import summarise
from sparcom_analysis.tables import instruction_table, layer_table, similarity_table
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import StorageError
from sparcom_data.storage import write_durably


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyze` made: the numbers, the sets behind them, and where the files lie."""

    metrics: Metrics
    neurons: InstructionNeurons
    output: Path

    @property
    def report(self) -> Path:
        """Path of report.html."""
        return self.output / "report.html"


def analyze(
    archive: Archive | str | Path,
    output: str | Path,
    *,
    epsilon: float | None = None,
    threshold: float | None = None,
    rows: Rows | None = None,
    exclude_self_pairs: bool = False,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Analysis:
    """Compute everything and write metrics.json, tables/, figures/ and report.html.

    Args:
        archive: an opened archive, or its path or address.
        output: a folder, made where it does not exist.
        exclude_self_pairs: show similarities without pairs of an instruction with itself; both are always computed.
        epsilon, threshold, rows, progress, block_bytes: see `instruction_specific_neurons`.
    """
    opened = archive if isinstance(archive, Archive) else open_archive(archive)
    folder = Path(output)
    _check_writable(folder)
    neurons = instruction_specific_neurons(
        opened, epsilon=epsilon, threshold=threshold, rows=rows, progress=progress, block_bytes=block_bytes
    )
    metrics = summarise(
        opened,
        neurons,
        category_similarity(neurons),
        isn_by_layer(neurons),
        exclude_self_pairs=exclude_self_pairs,
    )
    for name, data in render(metrics, neurons).items():
        write_durably(folder / name, [data])
    return Analysis(metrics, neurons, folder)


def render(metrics: Metrics, neurons: InstructionNeurons) -> dict[str, bytes]:
    """Every file of the output folder: its path in the folder and its bytes; metrics.json last."""
    from sparcom_analysis import figures

    drawn = {
        "isn_similarity": figures.similarity_figure(
            metrics.shown_similarity, metrics.archive.model_name, self_pairs=not metrics.settings.exclude_self_pairs
        ),
        "isn_by_layer": figures.layer_figure(metrics.isn_by_layer, metrics.archive.model_name),
    }
    vector = {name: figures.to_svg(figure) for name, figure in drawn.items()}
    tables = {
        "isn_similarity": similarity_table(metrics.isn_similarity),
        "isn_similarity_without_self": similarity_table(metrics.isn_similarity_without_self),
        "isn_by_layer": layer_table(metrics.isn_by_layer),
        "instructions": instruction_table(neurons),
    }
    return {
        **{f"tables/{name}.csv": text.encode() for name, text in tables.items()},
        **{f"figures/{name}.svg": data for name, data in vector.items()},
        **{f"figures/{name}.png": figures.to_png(figure) for name, figure in drawn.items()},
        "report.html": render_report(metrics, vector).encode(),
        "metrics.json": (metrics.model_dump_json(indent=2) + "\n").encode(),
    }


def _check_writable(folder: Path) -> None:
    """Make the folder and try to write into it.

    Raises:
        StorageError: it cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"the output must be a folder; {folder} is a file. Choose another --output")
    trial = folder / ".sparcom-trial"
    write_durably(trial, [b""])
    trial.unlink(missing_ok=True)

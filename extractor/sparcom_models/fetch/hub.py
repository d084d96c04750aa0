"""Download the files of a known model from the Hugging Face Hub, or find them in its local cache.

Respects HF_HUB_OFFLINE, HF_ENDPOINT and the configured cache folder of huggingface_hub.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError
from sparcom_data.hub import REACH_SECONDS, hub_endpoint, transport_errors, why_unreachable

if TYPE_CHECKING:
    from sparcom_models.fetch.known import KnownModel
    from sparcom_models.folder import ProgressCallback

WEIGHTS = "model.safetensors"


class HubUnreachableError(ModelUnavailableError):
    """The Hub does not answer, or the connection broke."""


def fetch_from_hub(model: KnownModel, endpoint: str | None, on_progress: ProgressCallback) -> dict[str, Path]:
    """Return the local path of each file of the model. Downloads files that the cache lacks; the caller checks hashes.

    Args:
        endpoint: address of the Hub; None for huggingface_hub's.
        on_progress: gets bytes done and total per file.

    Raises:
        HubUnreachableError: the Hub is unreachable (raised within about five seconds), or a download broke off.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    base = hub_endpoint(endpoint)
    paths = {
        name: try_to_load_from_cache(model.repository, name, revision=model.revision)
        for name in (*model.small_files, WEIGHTS)
    }
    missing = [name for name, path in paths.items() if not isinstance(path, str)]
    url = f"{base}/{model.repository}/resolve/{model.revision}/config.json"
    if missing and (problem := why_unreachable(url, base)):
        raise HubUnreachableError(problem)
    for name in missing:
        step = f"downloading {name} from {base}"
        on_progress(step)
        options = {"endpoint": base, "etag_timeout": REACH_SECONDS, "tqdm_class": _reporting_bar(step, on_progress)}
        try:
            paths[name] = hf_hub_download(model.repository, name, revision=model.revision, **options)
        except transport_errors() as error:
            raise HubUnreachableError(f"The download of {name} from {base} broke off: {error}.") from error
    return {name: Path(str(path)) for name, path in paths.items()}


def _reporting_bar(step: str, on_progress: ProgressCallback) -> Any:
    """Return a tqdm class for huggingface_hub that draws nothing and reports the bytes downloaded."""
    tqdm: Any = importlib.import_module("tqdm.auto").tqdm  # looked up by name, since it has no types

    class ReportingBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.bytes_done = int(options.get("initial") or 0)
            self.bytes_total = int(options.get("total") or 0)

        def update(self, n: float | None = 1) -> None:
            self.bytes_done += int(n or 0)
            on_progress(step, self.bytes_done, self.bytes_total)

    return ReportingBar

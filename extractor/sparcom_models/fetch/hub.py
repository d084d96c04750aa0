"""Fetches the files of a known model from the Hugging Face hub or its local cache.

Whether the hub can be reached is decided in five seconds, once. Honours HF_HUB_OFFLINE, HF_ENDPOINT and the cache's
place. Knows nothing of what the files mean; their hashes are checked by the caller.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError
from sparcom_data.hub import REACH_SECONDS, hub_endpoint, transport_errors, why_unreachable
from sparcom_models.folder import Tell, silent

if TYPE_CHECKING:
    from sparcom_models.fetch.known import KnownModel

WEIGHTS = "model.safetensors"


class HubUnreachableError(ModelUnavailableError):
    """The hub does not answer, or broke off."""


def fetch_from_hub(
    model: KnownModel, *, endpoint: str | None = None, cache: Path | None = None, tell: Tell = silent
) -> dict[str, Path]:
    """Where each file of the model lies on this disk: from the cache, else downloaded into it.

    `endpoint` and `cache` are the hub's address and the cache's folder, by default what huggingface_hub is set to.
    Raises `HubUnreachableError` within about five seconds where there is no way to the hub.
    """
    names = [*model.small_files, WEIGHTS]
    cached = {name: _cached(model, name, cache) for name in names}
    found = {name: path for name, path in cached.items() if path is not None}
    if len(found) == len(names):
        return found
    base = hub_endpoint(endpoint)
    if problem := why_unreachable(f"{base}/{model.repository}/resolve/{model.revision}/config.json", base):
        raise HubUnreachableError(problem)
    return {name: found.get(name) or _download(model, name, base, cache, tell) for name in names}


def _cached(model: KnownModel, name: str, cache: Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.repository, name, cache_dir=cache, revision=model.revision)
    return Path(path) if isinstance(path, str) else None


def _download(model: KnownModel, name: str, base: str, cache: Path | None, tell: Tell) -> Path:
    from huggingface_hub import hf_hub_download

    tell(f"downloading {name} from {base}")
    try:
        path = hf_hub_download(
            model.repository,
            name,
            revision=model.revision,
            endpoint=base,
            cache_dir=cache,
            etag_timeout=REACH_SECONDS,
            tqdm_class=_told(f"downloading {name} from {base}", tell),
        )
    except transport_errors() as error:
        raise HubUnreachableError(f"The download of {name} from {base} broke off: {error}.") from error
    return Path(path)


def _told(step: str, tell: Tell) -> Any:
    """A progress bar class for huggingface_hub that draws nothing and tells how far the download is."""
    bar: Any = importlib.import_module("tqdm.auto").tqdm  # ships no types, so it is looked up as a value

    class Told(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.bytes_done = int(options.get("initial") or 0)
            self.bytes_total = int(options.get("total") or 0)

        def update(self, n: float | None = 1) -> None:
            self.bytes_done += int(n or 0)
            tell(step, self.bytes_done, self.bytes_total)

    return Told

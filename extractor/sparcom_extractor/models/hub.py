"""Fetches the files of a known model from the Hugging Face hub or its local cache.

Whether the hub can be reached is decided in five seconds, once. Honours HF_HUB_OFFLINE, HF_ENDPOINT and the cache's
place. Knows nothing of what the files mean; their hashes are checked by the caller.
"""

from __future__ import annotations

import importlib
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import ModelUnavailableError
from sparcom_extractor.models.folder import Tell, silent

if TYPE_CHECKING:
    from sparcom_extractor.models.known import KnownModel

WEIGHTS = "model.safetensors"
_REACH_SECONDS = 5.0


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
    base = _endpoint(endpoint)
    _require_reachable(f"{base}/{model.repository}/resolve/{model.revision}/config.json", base)
    return {name: found.get(name) or _download(model, name, base, cache, tell) for name in names}


def _endpoint(endpoint: str | None) -> str:
    from huggingface_hub import constants

    return (endpoint or constants.ENDPOINT).rstrip("/")


def _cached(model: KnownModel, name: str, cache: Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.repository, name, cache_dir=cache, revision=model.revision)
    return Path(path) if isinstance(path, str) else None


def _require_reachable(url: str, base: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError("HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked.")
    problem = _problem(url)
    if problem:
        raise HubUnreachableError(f"The Hugging Face hub ({base}) cannot be reached: {problem}.")


def _problem(url: str) -> str | None:
    """Why a HEAD request for `url` fails, or None. Runs beside us: a name look-up has no time-out of its own."""
    outcome = [f"no answer within {_REACH_SECONDS:.0f} seconds"]
    asking = threading.Thread(target=_ask, args=(url, outcome), daemon=True)
    asking.start()
    asking.join(_REACH_SECONDS)
    return outcome[0] or None


def _ask(url: str, outcome: list[str]) -> None:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (the operator's endpoint, http or https)
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):  # noqa: S310
            outcome[0] = ""
    except urllib.error.URLError as error:
        outcome[0] = str(error.reason)
    except (OSError, ValueError) as error:
        outcome[0] = str(error)


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
            etag_timeout=_REACH_SECONDS,
            tqdm_class=_told(f"downloading {name} from {base}", tell),
        )
    except _transport_errors() as error:
        raise HubUnreachableError(f"The download of {name} from {base} broke off: {error}.") from error
    return Path(path)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a broken download raises: OSError, or the base error of whichever HTTP client the hub's package uses."""
    from huggingface_hub import errors

    return (OSError, *(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"))


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

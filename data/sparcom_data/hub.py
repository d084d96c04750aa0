"""Is the Hugging Face hub there? Asked once before anything is fetched from it, models and instructions alike.

Honours HF_HUB_OFFLINE and HF_ENDPOINT as huggingface_hub reads them. Fetches nothing.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

REACH_SECONDS = 5.0
_ANSWERED = (401, 404, 410)  # what a hub that is there says of a thing that it lacks; 403 is what proxies say of hubs


def hub_endpoint(endpoint: str | None = None) -> str:
    """The hub's address: the given one, else what huggingface_hub is set to."""
    from huggingface_hub import constants

    return (endpoint or constants.ENDPOINT).rstrip("/")


def why_unreachable(url: str, base: str) -> str:
    """Why the hub at `base` cannot be asked for `url`, in a sentence, within five seconds; empty where it can be."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked."
    problem = _problem(url)
    return f"The Hugging Face hub ({base}) cannot be reached: {problem}." if problem else ""


def transport_errors() -> tuple[type[Exception], ...]:
    """What a broken download raises: OSError, or the base error of whichever HTTP client the hub's package uses."""
    from huggingface_hub import errors

    return (OSError, *(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"))


def _problem(url: str) -> str:
    """Why the request fails, or nothing. Runs beside us: a name look-up has no time-out of its own."""
    outcome = [f"no answer within {REACH_SECONDS:.0f} seconds"]
    asking = threading.Thread(target=_ask, args=(url, outcome), daemon=True)
    asking.start()
    asking.join(REACH_SECONDS)
    return outcome[0]


def _ask(url: str, outcome: list[str]) -> None:
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (the operator's endpoint, http or https)
    try:
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):  # noqa: S310
            outcome[0] = ""
    except urllib.error.HTTPError as error:
        with error:
            outcome[0] = "" if error.code in _ANSWERED else f"{error.code} {error.reason}"
    except urllib.error.URLError as error:
        outcome[0] = str(error.reason)
    except (OSError, ValueError) as error:
        outcome[0] = str(error)

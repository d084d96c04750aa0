"""Check that the Hugging Face hub can be reached, once, before models or instructions are fetched from it.

Honors HF_HUB_OFFLINE and HF_ENDPOINT as huggingface_hub reads them. Fetches nothing.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

REACH_SECONDS = 5.0
_ANSWERED = (401, 404, 410)  # a reachable hub's answers for a missing item; 403 comes from proxies that block the hub


def hub_endpoint(endpoint: str | None = None) -> str:
    """Return the hub's address: `endpoint` if given, else the one that huggingface_hub is configured with."""
    from huggingface_hub import constants

    return (endpoint or constants.ENDPOINT).rstrip("/")


def why_unreachable(url: str, base: str) -> str:
    """Return one sentence on why the hub at `base` cannot serve `url`, empty if it can. Takes at most five seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the Hugging Face hub is not contacted."
    problem = _problem(url)
    return f"The Hugging Face hub ({base}) cannot be reached: {problem}." if problem else ""


def transport_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a broken download raises: OSError and the base error of huggingface_hub's HTTP client."""
    from huggingface_hub import errors

    return (OSError, *(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"))


def _problem(url: str) -> str:
    """Return why the request fails, or "". Asks in a thread: a name look-up has no time-out of its own."""
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

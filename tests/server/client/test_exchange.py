"""Retries, errors and idempotency, one effect at a time: no server and no waiting."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Any

import httpx
import pytest

from sparcom_client import ConflictError, LimitError, NoAnswerError, NotFoundError, ProblemError, RequestRefusedError
from sparcom_client import methods as client
from sparcom_client.effects import Block, Request, Send, Sleep
from sparcom_client.exchange import FIRST_DELAY, LONGEST_DELAY, Connection, connection, delays

API = Connection("http://server", None)
KEY = {
    "id": "k", "name": "ann", "role": "user", "limits": {}, "created": "", "revoked": None, "last_used": None,
    "newer": 1,
}  # fmt: skip


def problem(status: int, **headers: str) -> httpx.Response:
    """Return a problem detail."""
    body = {
        "type": "urn:sparcom:problem:x",
        "title": "X",
        "status": status,
        "detail": "a reason",
        "problems": ["a", "b"],
    }
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body, headers=names, request=httpx.Request("GET", "http://server/v1"))


def good(body: Any, status: int = 200) -> httpx.Response:
    """Return a success."""
    return httpx.Response(status, json=body, request=httpx.Request("GET", "http://server/v1"))


def play(
    steps: Generator[Any, Any, Any], *answers: httpx.Response | Exception
) -> tuple[list[Request], Any, list[float]]:
    """Give the answers in turn; return the requests, what the steps return, and the seconds that they waited."""
    requests: list[Request] = []
    waited: list[float] = []
    left, given = list(answers), None
    try:
        while True:
            effect = steps.throw(given) if isinstance(given, Exception) else steps.send(given)
            given = None
            if isinstance(effect, Send):
                requests.append(effect.request)
                given = left.pop(0)  # type: ignore[assignment]
            elif isinstance(effect, Block):
                given = effect.function()
            elif isinstance(effect, Sleep):
                waited.append(effect.seconds)
    except StopIteration as stop:
        assert not left, "more answers than requests"
        return requests, stop.value, waited


@pytest.mark.parametrize(
    "trouble",
    [
        *(problem(status) for status in (429, 502, 503, 504)),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("closed"),
    ],
    ids=str,
)
def test_a_busy_or_lost_server_is_tried_again(trouble: Any) -> None:
    """The same request is sent until it is answered, after growing delays; fields of a newer server are ignored."""
    requests, key, waited = play(client.revoke_key(API, "k"), trouble, trouble, good(KEY))
    assert (key.name, key.role) == ("ann", "user")
    assert requests == [requests[0]] * 3
    assert FIRST_DELAY / 2 <= waited[0] <= FIRST_DELAY <= waited[1] <= 2 * FIRST_DELAY


def test_delays_grow_and_differ() -> None:
    """Each delay doubles up to a bound, with jitter, so that waiting clients do not come back all at once."""
    several = [list(islice(delays(), 12)) for _ in range(20)]
    assert len({tuple(one) for one in several}) == 20
    for one in several:
        assert max(one) <= LONGEST_DELAY <= 2 * one[-1]


def test_the_server_says_when_to_try_again() -> None:
    """Retry-After replaces the delay; a wait beyond the patience is an error at once, with the time to wait."""
    requests, _, waited = play(client.revoke_key(API, "k"), problem(429, Retry_After="7"), good(KEY))
    assert (len(requests), waited) == (2, [7.0])
    with pytest.raises(LimitError) as raised:
        play(client.job(API, "j"), problem(429, Retry_After="3600"))
    assert raised.value.retry_after == 3600


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFoundError), (409, ConflictError), (422, RequestRefusedError), (500, ProblemError), (507, ProblemError)],
)
def test_a_refusal_is_final(status: int, kind: type[ProblemError]) -> None:
    """Other statuses are not tried again; the error has type, status, detail and problems."""
    with pytest.raises(kind) as raised:
        play(client.job(API, "j"), problem(status))
    error = raised.value
    assert (error.type, error.status, error.detail) == ("urn:sparcom:problem:x", status, "a reason")
    assert error.problems == ["a", "b"]


def test_patience_ends() -> None:
    """A client without patience raises the first error; it names the address and the remedy."""
    impatient = Connection("http://server", None, patience=0)
    with pytest.raises(
        NoAnswerError, match=r"no server answers at http://server: refused\. Start one with `sparcom serve`"
    ):
        play(client.job(impatient, "j"), httpx.ConnectError("refused"))


@pytest.mark.parametrize("server", ["http://[", "lab:8000", "ftp://lab"])
def test_a_wrong_address_is_an_error_at_once(server: str) -> None:
    """No address of a server, no retry."""
    from sparcom_client import Client

    with Client(server) as wrong, pytest.raises(NoAnswerError, match="no server answers at"):
        wrong.job("j")


def test_an_answer_of_another_server_is_an_error() -> None:
    """A page of a proxy, or JSON of something else, is neither a job nor a refusal."""
    for answer in (
        httpx.Response(404, text="<html>", request=httpx.Request("GET", "http://server")),
        good({"hello": 1}),
        good([]),
    ):
        with pytest.raises(NoAnswerError, match="SPARCOM server"):
            play(client.job(API, "j"), answer)


def test_a_submission_has_one_idempotency_key() -> None:
    """Repeats have the key and the bytes of the first; another call has another key; a caller may choose it."""
    item = {"id": "a", "text": "x"}
    seen = []
    for given in (None, None, "mine"):
        steps = client.submit(API, [item], idempotency_key=given)
        effect: Any = steps.send(None)
        effect = steps.send(effect.function())
        first = effect.request
        assert isinstance(steps.throw(httpx.ReadError("lost")), Sleep)
        again: Any = steps.send(None)
        assert again.request == first
        assert again.request.content == b'{"instructions":[{"id": "a", "text": "x"}\n]}'
        seen.append(first.headers["Idempotency-Key"])
    assert len(set(seen)) == 3
    assert seen[2] == "mine"


def test_a_key_is_never_created_twice() -> None:
    """A lost answer is an error, since the server may have made the key; a refused connection is tried again."""
    with pytest.raises(NoAnswerError):
        play(client.create_key(API, "ann"), httpx.ReadError("lost"))
    _, key, waited = play(
        client.create_key(API, "ann"), httpx.ConnectError("refused"), good(KEY | {"key": "secret"}, 201)
    )
    assert (key.key, len(waited)) == ("secret", 1)


def test_a_lost_answer_to_a_deletion_is_no_error() -> None:
    """After a lost answer, 404 means that the first attempt deleted it; at once, it means that there is nothing."""
    assert play(client.delete_archive(API, "a"), httpx.ReadError("lost"), problem(404))[1] is None
    with pytest.raises(NotFoundError):
        play(client.delete_archive(API, "a"), problem(404))


def test_readiness_is_not_waited_for() -> None:
    """503 with the state of the models is an answer, not an error."""
    body = {"ready": False, "models": {"m": "loading"}, "problems": ["no engine runs"]}
    requests, ready, _ = play(client.ready(API), good(body, 503))
    assert (len(requests), ready.ready, ready.problems) == (1, False, ["no engine runs"])


def test_server_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPARCOM_SERVER and SPARCOM_API_KEY are defaults; the key is never shown."""
    monkeypatch.delenv("SPARCOM_SERVER", raising=False)
    monkeypatch.delenv("SPARCOM_API_KEY", raising=False)
    assert connection() == Connection("http://127.0.0.1:8000", None)
    monkeypatch.setenv("SPARCOM_SERVER", "http://lab:1/")
    monkeypatch.setenv("SPARCOM_API_KEY", "sparcom_k_secret")
    assert connection() == Connection("http://lab:1", "sparcom_k_secret")
    assert connection("http://other", "mine") == Connection("http://other", "mine")
    assert connection().headers == {"Authorization": "Bearer sparcom_k_secret"}
    assert "secret" not in repr(connection())

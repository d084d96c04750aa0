"""The body of a new extraction: bounded cost of reading it, and bounded error responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from sparcom_data.errors import InvalidInputError
from sparcom_data.instructions import MAX_METADATA_DEPTH, MAX_METADATA_VALUES, Instruction, dataset_sha256
from sparcom_server.http import request_body
from sparcom_server.http.request_body import parse_extraction
from sparcom_server.memory import LARGE_BYTES, Turns

Start = Callable[..., Any]
ONE = {"id": "a", "text": "hello"}
JSON = {"Content-Type": "application/json"}


def parse(content: object, limit: int = 1000) -> Any:
    """Parse a body: bytes unchanged, anything else encoded as JSON."""
    return parse_extraction(bytearray(content if isinstance(content, bytes) else json.dumps(content).encode()), limit)


def problems(content: object, limit: int = 1000) -> list[str]:
    """Return the problems of an invalid body."""
    with pytest.raises(InvalidInputError) as caught:
        parse(content, limit)
    return caught.value.problems


def nested(depth: int) -> dict[str, Any]:
    """Return an object of nested lists with `depth` levels in total."""
    value: list[Any] = []
    for _ in range(depth - 2):
        value = [value]
    return {"a": value}


def test_many_problems_give_a_short_response(start: Start) -> None:
    """400,000 invalid instructions give 100 problems and the number of the others, in a few kilobytes."""
    running = start(max_instructions=1_000_000)
    content = b'{"instructions": [' + b"1," * 399_999 + b"1]}"
    response = running.http.post("/v1/extractions", content=content, headers=JSON)
    error = response.json()
    assert (response.status_code, len(error["problems"])) == (422, 101)
    assert error["problems"][-1] == "… and 399,900 more"
    assert error["problems"][0].startswith("instructions.0: ")
    assert error["detail"] == "\n".join(error["problems"])
    assert len(response.content) < 30_000


def test_ids_given_twice_are_bounded_too() -> None:
    """150 duplicate ids give 100 problems and the number of the others."""
    found = problems({"instructions": [ONE | {"id": f"i{number % 150}"} for number in range(300)]})
    assert (len(found), found[-1]) == (101, "… and 50 more")


@pytest.mark.parametrize(
    "content",
    [
        {"instructions": [ONE], "x" * 100_000: 1},
        {"instructions": [ONE | {"x" * 100_000: 1}]},
        {"instructions": [ONE], "model": "x" * 100_000},
        {"instructions": [ONE], "archive": "x" * 100_000},
        {"instructions": [ONE], "options": {"positions": "x" * 100_000}},
        {"instructions": [{"id": "a", "messages": [{"role": "x" * 100_000, "content": "x"}]}]},
        {"instructions": [ONE], "options": {f"x{n}": 1 for n in range(100_000)}},
        {"instructions": [ONE | {f"x{n}": 1 for n in range(100_000)}]},
        {"instructions": [ONE], **{f"x{n}": 1 for n in range(100_000)}},
        {"instructions": [{"id": "a", "token_ids": ["x"] * 100_000}]},
        {"instructions": [{"id": "a", "messages": [1] * 100_000}]},
        {"instructions": [ONE] * 900},
        {"instructions": {f"x{n}": 1 for n in range(100_000)}},
    ],
)
def test_long_values_are_not_sent_back(start: Start, content: Any) -> None:
    """An error repeats names and values of a request only if they are short."""
    response = start().http.post("/v1/extractions", json=content)
    assert response.status_code in {404, 422}
    assert len(response.content) < 5000


def test_query_and_path_are_not_sent_back(start: Start) -> None:
    """An error repeats values of the address only if they are short."""
    running = start()
    for path in ("/v1/extractions/" + "x" * 20_000, "/v1/extractions?limit=" + "x" * 20_000):
        response = running.http.get(path)
        assert 400 <= response.status_code < 500
        assert len(response.content) < 5000


def test_problems_outside_the_instructions_come_first() -> None:
    """An invalid option is reported even if hundreds of instructions are invalid."""
    found = problems({"instructions": [1] * 500, "options": {"positions": "x"}})
    assert found[0].startswith("options.positions: ")
    assert found[-1] == "… and 401 more"


@pytest.mark.parametrize("depth", [MAX_METADATA_DEPTH + 1, 150, 260, 5000])
def test_deep_metadata_is_refused(start: Start, depth: int) -> None:
    """Metadata nested too deeply to be written gets 422 with a message, at 260 levels and at any other depth."""
    running = start()
    content = b'{"instructions": [{"id": "a", "text": "x", "metadata": {"a":' + b"[" * depth + b"]" * depth + b"}}]}"
    response = running.http.post("/v1/extractions", content=content, headers=JSON)
    assert response.status_code == 422
    assert "deep" in response.json()["detail"]
    assert running.files() == []


def test_metadata_of_the_allowed_depth_is_accepted() -> None:
    """Metadata of 100 levels can be hashed and written; 101 levels are refused, also from a file."""
    allowed = parse({"instructions": [ONE | {"metadata": nested(MAX_METADATA_DEPTH)}]})
    assert len(dataset_sha256(allowed.instructions)) == 64
    with pytest.raises(ValueError, match="at most 100 deep"):
        Instruction.model_validate(ONE | {"metadata": nested(MAX_METADATA_DEPTH + 1)})


def test_the_number_of_values_in_metadata_is_bounded() -> None:
    """Metadata of 100,000 values are accepted, at any depth; one more is refused, with the limit."""
    most: dict[str, Any] = {"a": [[0] * 50_000, [0] * (MAX_METADATA_VALUES - 50_003)]}
    Instruction.model_validate(ONE | {"metadata": most})
    with pytest.raises(ValueError, match="at most 100,000 values"):
        Instruction.model_validate(ONE | {"metadata": most | {"b": 1}})


def test_the_number_of_instructions_is_bounded(start: Start) -> None:
    """`max_instructions` are accepted; one more gets 422 with both numbers and the remedy."""
    running = start(max_instructions=3)
    assert running.post(3).status_code == 202
    refused = running.post(4)
    assert refused.status_code == 422
    assert refused.json()["problems"] == [
        "instructions: a request may have at most 3; it has 4. Send them in several requests, or have the operator "
        "raise max_instructions"
    ]


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body with too many numbers and strings, or objects and lists, is refused before it is decoded."""
    body = {"instructions": [{"id": "a", "token_ids": [1, 2, 3]}]}
    monkeypatch.setattr(request_body, "from_json", lambda _: pytest.fail("it was decoded"))
    monkeypatch.setattr(request_body, "MAX_VALUES", 6)
    assert "at most 6 numbers and strings" in problems(body)[0]
    monkeypatch.setattr(request_body, "MAX_VALUES", 100)
    monkeypatch.setattr(request_body, "MAX_CONTAINERS", 3)
    assert "at most 3 objects and lists" in problems(body)[0]
    monkeypatch.setattr(request_body, "MAX_CONTAINERS", 100)
    monkeypatch.setattr(request_body, "MAX_STRINGS", 3)
    assert "at most 3 strings" in problems(body)[0]


@pytest.mark.parametrize("text", ["[" * 50, '"[' * 50, '\\"{[' * 50, "\\", '"', "\\\\", '\\\\"['])
def test_brackets_in_text_are_not_counted(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Brackets in a string do not count, whatever is escaped."""
    monkeypatch.setattr(request_body, "MAX_CONTAINERS", 4)
    body = {"instructions": [{"id": "a", "text": text + "x", "source": "]" + text}, ONE | {"id": "b"}]}
    assert [item.id for item in parse(body).instructions] == ["a", "b"]


def test_an_open_string_is_counted_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unterminated string is counted in one pass; a second pass per escaped quote would take hours."""
    monkeypatch.setattr(request_body, "MAX_CONTAINERS", 4)
    assert request_body._count_strings_and_containers(bytearray(b"[[" + b'"' + b'\\"[' * 1_000_000)) == (1, 2)


def test_a_body_is_emptied_when_it_is_decoded() -> None:
    """The bytes are released before the objects are checked."""
    body = bytearray(json.dumps({"instructions": [ONE]}).encode())
    assert parse_extraction(body, 10).instructions[0].id == "a"
    assert body == b""


def test_the_loop_answers_while_a_body_is_checked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """/health answers while the body of another request is being checked."""
    running = start()
    answers = []

    def ask(body: bytearray, limit: int) -> Any:
        answers.append(running.http.get("/health").status_code)
        return parse_extraction(body, limit)

    monkeypatch.setattr("sparcom_server.routes.extractions.parse_extraction", ask)
    with httpx.Client(base_url=running.url, timeout=20) as other:
        assert other.post("/v1/extractions", json={"instructions": [ONE]}).status_code == 202
    assert answers == [200]


def test_large_bodies_take_turns() -> None:
    """Of two large bodies the second waits; a small one does not. An error ends a turn, too."""

    async def use(turns: Turns) -> list[str]:
        order: list[str] = []

        async def take(name: str, size: int) -> None:
            with suppress(ValueError):
                async with turns.take(size):
                    order.append(f"{name} begins")
                    await asyncio.sleep(0.05 if size > LARGE_BYTES else 0)
                    order.append(f"{name} ends")
                    raise ValueError

        await asyncio.gather(take("first", LARGE_BYTES + 1), take("second", LARGE_BYTES + 1), take("small", 1))
        return order

    assert asyncio.run(use(Turns(2))) == [
        "first begins", "small begins", "small ends", "first ends", "second begins", "second ends"
    ]  # fmt: skip

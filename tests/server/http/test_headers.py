"""Malformed request headers are ignored or refused, and leave no descriptor open."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import FakeEngine
from helpers import AsgiClient
from sparcom_data.testing import write_random_archive
from sparcom_server.app import create_app
from sparcom_server.http.file_response import UnsatisfiableRangeError, parse_range
from sparcom_server.settings import ServerSettings

Start = Callable[..., Any]
NINES = "9" * 4301  # more digits than int() accepts
BAD_HEADERS = [
    {"Range": f"bytes=-{NINES}"},
    {"Range": f"bytes={NINES}-"},
    {"Range": f"bytes=0-{NINES}"},
    {"If-Modified-Since": "Sun, 06 Nov 99999999999999999999 08:49:37 GMT"},
    {"If-Modified-Since": "Sun, 06 Nov 0001 08:49:37 +2359"},
    {"If-Modified-Since": f"Sun, 06 Nov 1994 {NINES}:49:37 GMT"},
]


@pytest.mark.parametrize("headers", BAD_HEADERS)
def test_numbers_of_any_length_are_accepted(start: Start, headers: dict[str, str]) -> None:
    """Numbers beyond any file or calendar are treated as RFC 9110 says: as very large, or as an invalid date."""
    running = start()
    write_random_archive(running.archives / "rand.zarr")
    response = running.http.get("/v1/archives/rand/zarr/zarr.json", headers=headers)
    whole = (running.archives / "rand.zarr" / "zarr.json").read_bytes()
    if headers.get("Range") == f"bytes={NINES}-":
        assert response.status_code == 416
    else:
        assert response.content == whole


def test_a_range_may_have_leading_zeros() -> None:
    """Leading zeros do not make a number large."""
    assert parse_range("bytes=" + "0" * 5000 + "3-" + "0" * 5000 + "5", 10) == (3, 3)
    assert parse_range(f"bytes=-{NINES}", 10) == (0, 10)
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(f"bytes={NINES}-", 10)


def test_a_thousand_bad_ranges_leave_no_descriptor(process: Start) -> None:
    """With 1,024 descriptors, their number is unchanged after 1,000 bad ranges, and a valid request still works."""
    running = process(descriptors=1024)
    write_random_archive(running.data / "archives" / "rand.zarr")
    url = "/v1/archives/rand/zarr/zarr.json"
    whole = (running.data / "archives" / "rand.zarr" / "zarr.json").read_bytes()
    assert running.http.get(url).content == whole
    before = running.descriptors()
    for number in range(1000):
        assert running.http.get(url, headers=BAD_HEADERS[number % len(BAD_HEADERS)]).status_code < 500
    running.wait_for(lambda: running.descriptors() <= before)  # a connection closes shortly after its client leaves
    assert running.http.get(url).content == whole


def test_a_broken_response_closes_its_file(process: Start) -> None:
    """Clients that disconnect within a file, and a truncated file, leave no descriptor open."""
    running = process()
    write_random_archive(running.data / "archives" / "rand.zarr")
    big = running.data / "archives" / "rand.zarr" / "big"
    big.write_bytes(bytes(64 * 2**20))
    url = "/v1/archives/rand/zarr/big"
    assert running.http.head(url).status_code == 200
    before = running.descriptors()
    for _ in range(20):
        with socket.create_connection(running.address, timeout=10) as connection:
            connection.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with running.http.stream("GET", url) as response:
        parts = response.iter_raw()
        assert next(parts)
        with big.open("r+b") as file:
            file.truncate(10)
        with pytest.raises(httpx.RemoteProtocolError):
            list(parts)
    running.wait_for(lambda: running.descriptors() <= before)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> AsgiClient:
    """Return a client of an app with one archive, for thousands of requests."""
    folder = tmp_path_factory.mktemp("data")
    write_random_archive(folder / "archives" / "rand.zarr")
    return AsgiClient(create_app({"fake": FakeEngine().source()}, ServerSettings(data_dir=folder)))


NAMES = [
    "Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "Origin", "Host", "Content-Type",
    "Content-Length", "Accept", "Sec-Fetch-Site", "X-Forwarded-Host", "Last-Event-ID", "Cookie", "Authorization",
]  # fmt: skip
VALUES = (
    st.binary(max_size=40).filter(lambda value: not set(value) & {0, 10, 13})
    | st.from_regex(rb"\Abytes=-?[0-9]{0,30}-?[0-9]{0,30}\Z")
    | st.from_regex(rb"\A(Mon|Sun), [0-9]{1,30} (Jan|Nov) [0-9]{1,30} [0-9:]{0,30} (GMT|\+[0-9]{4,9})\Z")
    | st.from_regex(rb"\Ahttps?://[a-z\[\]:@%.0-9]{0,20}(:[0-9]{0,20})?\Z")
    | st.sampled_from([NINES.encode(), b"[", b"[::1", b"]:x", b"localhost:99999", b"\xff", b"a" * 4000])
)


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    path=st.sampled_from(
        ["/v1/archives/rand/zarr/zarr.json", "/v1/archives/rand", "/v1/extractions", "/v1/models", "/"]
    ),
    headers=st.lists(st.tuples(st.sampled_from([name.encode() for name in NAMES]), VALUES), max_size=4),
)
def test_no_header_breaks_the_service(
    app: AsgiClient, method: str, path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    """No header gives a status of 500 or higher."""
    assert app.request(method, path, headers=headers).status_code < 500


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        (socket.gethostname(), 200),
        ("spark.example.org:80", 200),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:8000@evil.example", 421),
        ("", 421),
    ],
)
def test_the_host_must_be_this_service(start: Start, host: str, status: int) -> None:
    """IP addresses, this machine's names and allowed names pass; DNS rebinding gives another name."""
    running = start(allowed_hosts=("spark.example.org",))
    response = running.http.get("/v1/extractions", headers={"Host": host})
    assert response.status_code == status
    if status == 421:
        assert "--allowed-host" in response.json()["detail"]


def test_any_host_can_be_allowed(start: Start) -> None:
    """The operator may disable the check, behind a proxy that checks."""
    assert start(allowed_hosts=("*",)).http.get("/health", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "{url}"}, 202),
        ({"Origin": "{url}", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_another_site_cannot_post(start: Start, headers: dict[str, str], status: int) -> None:
    """Browsers send the origin; only the service's own page may change anything."""
    running = start()
    sent = {name: value.format(url=running.url) for name, value in headers.items()}
    body = {"instructions": [{"id": "a", "text": "x"}]}
    assert running.http.post("/v1/extractions", json=body, headers=sent).status_code == status
    assert len(running.http.get("/v1/extractions", headers=sent).json()["data"]) == int(status == 202)
    job = running.http.delete("/v1/extractions/none", headers=sent)
    assert job.status_code == (404 if status == 202 else 403)


def test_a_proxy_may_use_tls(start: Start) -> None:
    """Behind a TLS proxy, the page's origin is https but the service sees http; host and port agree."""
    running = start(allowed_hosts=("lab.example",))
    headers = {"Host": "lab.example", "Origin": "https://lab.example", "Sec-Fetch-Site": "same-origin"}
    assert running.http.delete("/v1/extractions/none", headers=headers).status_code == 404


@pytest.mark.parametrize("declared", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_accepted(start: Start, declared: str) -> None:
    """Bodies that a page can send to another site unasked get 415, and nothing is written."""
    running = start()
    content = b'{"instructions": [{"id": "a", "text": "x"}]}'
    response = running.http.post("/v1/extractions", content=content, headers={"Content-Type": declared})
    assert response.status_code == 415
    assert running.files() == []

"""The archive over HTTP: readers get the bytes on disk, and nothing else can be reached."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from helpers import problem_of
from sparcom_data.archive import open_archive
from sparcom_data.errors import ArchiveNotFoundError, DamagedArchiveError
from sparcom_data.testing import write_random_archive
from sparcom_server.http.file_response import UnsatisfiableRangeError, parse_range

Start = Callable[..., Any]
CHUNK = "neuron/active/c.0.0.0"


@pytest.fixture
def running(start: Start) -> Any:
    """Return a server with one archive of random masks, `running.truth`."""
    server = start()
    server.archives.mkdir(parents=True, exist_ok=True)
    server.truth = write_random_archive(server.archives / "rand.zarr", failed=(2,))
    server.zarr = f"{server.url}/v1/archives/rand/zarr"
    return server


def test_zarr_opens_the_address(running: Any) -> None:
    """`zarr.open` of the address gives the written masks."""
    group = zarr.open(running.zarr, mode="r")
    packed = np.asarray(group["neuron/active"][:])
    masks = np.unpackbits(packed, axis=-1, bitorder="little", count=20).astype(bool)
    np.testing.assert_array_equal(masks, running.truth)


def test_our_reader_opens_the_address(running: Any) -> None:
    """The project's reader gives the same data and errors over HTTP as from disk."""
    remote, local = open_archive(running.zarr), open_archive(running.archives / "rand.zarr")
    assert remote.attributes == local.attributes
    assert remote.instructions.id == local.instructions.id
    np.testing.assert_array_equal(remote.read_active(0, local.tokens), local.read_active(0, local.tokens))
    (running.archives / "rand.zarr" / CHUNK).unlink()
    with pytest.raises(DamagedArchiveError, match="neuron/active"):
        open_archive(running.zarr).read_active(0, 8)
    with pytest.raises(ArchiveNotFoundError):
        open_archive(f"{running.url}/v1/archives/none/zarr")


def test_every_file_is_served_exactly(running: Any) -> None:
    """GET and HEAD of each key give the bytes and the length of the file."""
    root = running.archives / "rand.zarr"
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        key = path.relative_to(root).as_posix()
        response = running.http.get(f"{running.zarr}/{key}")
        assert (response.status_code, response.content) == (200, path.read_bytes()), key
        head = running.http.head(f"{running.zarr}/{key}")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["Content-Length"]) == path.stat().st_size
        assert head.headers["ETag"] == response.headers["ETag"]


def test_a_file_larger_than_a_block_is_sent_whole(running: Any) -> None:
    """Files are sent in blocks of 1 MiB; several blocks give the same bytes, in whole and in ranges."""
    data = os.urandom(3 * 2**20 + 17)
    (running.archives / "rand.zarr" / "big").write_bytes(data)
    assert running.http.get(f"{running.zarr}/big").content == data
    part = running.http.get(f"{running.zarr}/big", headers={"Range": "bytes=5-2500000"})
    assert (part.status_code, part.content) == (206, data[5:2500001])


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=3-9", slice(3, 10)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-4", slice(-4, None)),
        ("bytes=0-999999", slice(None)),
        ("bytes=-999999", slice(None)),
    ],
)
def test_a_range_is_a_slice(running: Any, asked: str, part: slice) -> None:
    """A byte range gives status 206, the bytes of the slice, and its position."""
    data = (running.archives / "rand.zarr" / CHUNK).read_bytes()
    response = running.http.get(f"{running.zarr}/{CHUNK}", headers={"Range": asked})
    first, stop, _ = part.indices(len(data))
    assert (response.status_code, response.content) == (206, data[part])
    assert response.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(data)}"


def test_a_range_outside_the_file_is_refused(running: Any) -> None:
    """Status 416 with the file's size."""
    size = (running.archives / "rand.zarr" / CHUNK).stat().st_size
    response = running.http.get(f"{running.zarr}/{CHUNK}", headers={"Range": f"bytes={size}-"})
    assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{size}")


@given(
    size=st.integers(0, 20),
    first=st.none() | st.integers(0, 25),
    last=st.none() | st.integers(0, 25),
)
def test_ranges_follow_the_rfc(size: int, first: int | None, last: int | None) -> None:
    """For any range and size, the result is RFC 9110's slice, the whole file if malformed, or an error if empty."""
    data = bytes(range(size))
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert parse_range(header, size) is None
        return
    expected = data[-last:] if first is None and last else data[first : None if last is None else last + 1]
    expected = b"" if first is None and last == 0 else expected
    if not expected:
        with pytest.raises(UnsatisfiableRangeError):
            parse_range(header, size)
    else:
        begin, length = parse_range(header, size) or (-1, 0)
        assert data[begin : begin + length] == expected


def test_an_unchanged_file_is_not_sent_again(running: Any) -> None:
    """If-None-Match and If-Modified-Since give 304; a replaced file gives its new bytes and a new tag."""
    url, path = f"{running.zarr}/zarr.json", running.archives / "rand.zarr" / "zarr.json"
    first = running.http.get(url)
    tag = first.headers["ETag"]
    assert running.http.get(url, headers={"If-None-Match": tag}).status_code == 304
    since = {"If-Modified-Since": first.headers["Last-Modified"]}
    assert running.http.get(url, headers=since).status_code == 304
    replacement = path.with_suffix(".new")
    replacement.write_bytes(path.read_bytes() + b" ")
    replacement.replace(path)
    again = running.http.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (200, path.read_bytes())
    partial = running.http.get(url, headers={"If-Range": tag, "Range": "bytes=0-1"})
    assert partial.status_code == 200, "a range of a replaced file would mix two files"


@pytest.mark.parametrize(
    "key", ["none", "neuron", "neuron/active", "", "neuron/active/c/9/0/0", "zarr.json/x", "a" * 300, "%00"]
)
def test_missing_keys_are_404(running: Any, key: str) -> None:
    """A key that is not a file of the store, such as a folder, gets 404 with the usual error body."""
    response = running.http.get(f"{running.zarr}/{key}")
    assert (response.status_code, problem_of(response)) == (404, "archive-not-found")


def raw_status(running: Any, path: str) -> int:
    """Return the status of a request whose path is sent unchanged."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int(connection.recv(100).split()[1])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/archives/rand/zarr/../../secret",
        "/v1/archives/rand/zarr/%2e%2e/%2e%2e/secret",
        "/v1/archives/rand/zarr/..%2f..%2fsecret",
        "/v1/archives/rand/zarr/neuron/../../../secret",
        "/v1/archives/rand/zarr//etc/passwd",
        "/v1/archives/rand/zarr/%2fetc%2fpasswd",
        "/v1/archives/..%2f..%2fdata/zarr/secret",
        "/v1/archives/../zarr/secret",
        "/v1/archives/%2e%2e/zarr/secret",
        "/v1/archives/rand/zarr/./zarr.json",
    ],
)
def test_no_path_leads_out(running: Any, path: str) -> None:
    """No spelling of a path reaches a file outside the archive."""
    (running.archives.parent / "secret").write_text("secret")
    (running.archives / "secret").write_text("secret")
    assert raw_status(running, "/v1/archives/rand/zarr/zarr.json") == 200
    assert raw_status(running, path) == 404


def test_no_link_is_followed(running: Any, tmp_path: Path) -> None:
    """Links to files, folders and whole archives count as missing."""
    outside = tmp_path / "outside"
    write_random_archive(outside / "other.zarr")
    root = running.archives / "rand.zarr"
    (root / "file").symlink_to(outside / "other.zarr" / "zarr.json")
    (root / "folder").symlink_to(outside / "other.zarr")
    (running.archives / "linked.zarr").symlink_to(outside / "other.zarr")
    assert running.http.get(f"{running.zarr}/file").status_code == 404
    assert running.http.get(f"{running.zarr}/folder/zarr.json").status_code == 404
    assert running.http.get(f"{running.url}/v1/archives/linked/zarr/zarr.json").status_code == 404
    assert running.http.get(f"{running.url}/v1/archives/linked").status_code == 404
    names = [item["name"] for item in running.http.get("/v1/archives").json()["data"]]
    assert names == ["rand"]


def test_files_being_written_are_not_served(running: Any) -> None:
    """Temporary files count as missing, also within folders of such names; pipes do not hang."""
    root = running.archives / "rand.zarr"
    (root / "zarr.json.123.partial").write_text("half")
    (root / "x.partial").mkdir()
    (root / "x.partial" / "y").write_text("half")
    os.mkfifo(root / "pipe")
    for key in ("zarr.json.123.partial", "x.partial/y", "pipe"):
        assert running.http.get(f"{running.zarr}/{key}").status_code == 404, key


def test_descriptors_are_closed(running: Any) -> None:
    """After whole, partial, refused, conditional, HEAD and aborted requests no file is left open."""
    (running.archives / "rand.zarr" / "big").write_bytes(bytes(8 * 2**20))
    url = f"{running.zarr}/big"
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a count; Path.iterdir opens one more)
    for _ in range(5):
        running.http.get(url)
        running.http.head(url)
        running.http.get(url, headers={"Range": "bytes=1-2"})
        running.http.get(url, headers={"Range": "bytes=99999999-"})
        running.http.get(url, headers={"If-None-Match": "*"})
        raw_status(running, "/v1/archives/rand/zarr/big")  # reads the first bytes and disconnects
    running.wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)  # noqa: PTH208


def test_archives_are_listed_and_described(running: Any) -> None:
    """The list has every archive, including unreadable ones; the facts match the disk."""
    (running.archives / "broken.zarr").mkdir()
    for name, text in {
        "text": "{",
        "list": "[]",
        "newer": '{"attributes": {"sparcom": {"format_version": 99}}}',
    }.items():
        (running.archives / f"{name}.zarr").mkdir()
        (running.archives / f"{name}.zarr" / "zarr.json").write_text(text)
    (running.archives / "notes.txt").write_text("x")
    page = running.http.get("/v1/archives").json()
    listed = {item["name"]: item for item in page["data"]}
    assert (page["has_more"], set(listed)) == (False, {"rand", "broken", "text", "list", "newer"})
    for name in ("broken", "text", "list"):
        assert "Zarr v3 group" in listed[name]["error"]
    assert "format 99" in listed["newer"]["error"]
    counts = {"pending": 0, "complete": 9, "failed": 1, "cancelled": 0}
    assert (listed["rand"]["model"], listed["rand"]["state"], listed["rand"]["error"]) == ("random", "incomplete", None)
    assert listed["rand"]["instructions"] == counts
    first = running.http.get("/v1/archives", params={"limit": 4}).json()
    rest = running.http.get("/v1/archives", params={"after": first["last_id"]}).json()
    assert [item["name"] for item in first["data"] + rest["data"]] == [item["name"] for item in page["data"]]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    facts = running.http.get("/v1/archives/rand").json()
    archive = open_archive(running.archives / "rand.zarr")
    assert (facts["state"], facts["attributes"]["state"], facts["instructions"]) == ("incomplete", "complete", counts)
    assert facts["categories"] == {"CLS": 5, "CODE": 5}
    assert facts["tokens"] == archive.tokens
    assert facts["bytes"] == sum(
        path.stat().st_size for path in running.archives.glob("rand.zarr/**/*") if path.is_file()
    )
    assert facts["zarr"] == running.zarr
    assert running.http.get("/v1/archives/none").status_code == 404
    assert running.http.get("/v1/archives/broken").status_code == 404
    assert running.http.get("/v1/archives/newer").status_code == 501
    assert running.http.get("/v1/archives/..").status_code == 404


@pytest.mark.parametrize("path", ["/v1/archives/rand", "/v1/archives/rand/"])
def test_an_address_without_zarr_gets_a_hint(running: Any, path: str) -> None:
    """Readers with the address of the facts are told the address of the store, by the server and by our reader."""
    for key in ("zarr.json", "neuron/active/zarr.json"):
        response = running.http.get(f"/v1/archives/rand/{key}")
        assert response.status_code == 404
        assert f"Open {running.zarr} instead" in response.json()["detail"]
        assert running.http.head(f"/v1/archives/rand/{key}").status_code == 404
    with pytest.raises(ArchiveNotFoundError, match=rf"ends in /zarr. Try {running.zarr}$"):
        open_archive(running.url + path)
    with pytest.raises(FileNotFoundError):
        zarr.open(running.url + path, mode="r")

"""Hostile HTTP requests, as the bytes that a client sends, from a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from helpers import instructions


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


CLIMBS = words(
    r".. %2e%2e .%2e %252e%252e %c0%ae%c0%ae %e0%80%ae%e0%80%ae %uff0e%uff0e ․․ ．． ‥ ..; ..%00 ..%5c.. ..\.. ....// "
    r"%2e%2e%2f%2e%2e ..%2f.. %2f.."
)
NAMES = (
    *words(r". ~ ~a a~b x~kept /etc/passwd //etc/passwd C:\Windows C%3A%5C CON nul aux a. a:b * ? # % %00 a%00b"),
    *words(r"%ff%fe %ed%a0%80 é kept.zarr link - --help $(id) `id` ';-- %s%n {0} null NaN -1 %0d%0aX:y"),
    *("", "a ", "\r\n", "\x7f", "\udcff", "\U0001f600", "\u202e", "\ufeff"),
    *("a" * 129, "a" * 5000, "é" * 200, "1" * 400),
)
SECRETS = words(
    "secret.txt data/sparcom.db sparcom.db server.log etc/passwd link linked/secret.txt pipe zarr.json/x /zarr.json"
)
TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\U0001f600",
    "é" * 300,
    "a" * 100_000,
    "..",
    "../../up",
    "/etc/passwd",
    "\n",
    "x.zarr",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": {}},
)
NUMBERS = ("", "0", "-1", "9" * 4301, "1e9", "٣", "0x10", "+1", "1,2", " 1", "NaN", "\xb2")
RANGES = (
    "bytes=0-0",
    "bytes=-5",
    "bytes=5-",
    "bytes=9-1",
    "bytes=0-0,2-3",
    "bytes=" + "0-," * 2000,
    "bytes=--1",
    "items=0-1",
)
ETAGS = ("*", '"', 'W/"a"', '"a", "b"', "\xff", "a" * 9000, "," * 9000)
HOSTS = (
    "",
    "evil.example",
    "localhost:99999",
    "[::1",
    "[::1]:x",
    "127.0.0.1:80:80",
    "a@localhost",
    "localhost, evil",
    "\xff",
)
TYPES = (
    "",
    "application/json",
    "APPLICATION/JSON; charset=utf-16",
    "text/plain",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "b" * 5000,
    "application/jsonl",
    "a/b; ;;=",
    "application/x-ndjson; charset=\xff",
)
METHODS = ("", "A" * 300, *words("GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT get"))
BATCH: dict[str, Any] = {
    "instructions": [
        *instructions(2),
        {"id": "c", "messages": [{"role": "user", "content": "x"}]},
        {"custom_id": "d", "token_ids": [1, 2], "metadata": {"a": [1, {"b": "c"}]}},
    ],
    "model": "fake",
    "archive": "fuzzed",
    "options": {"granularity": "count", "positions": "all", "max_tokens": 2, "prompt_format": "chat"},
    "dataset": {"name": "d"},
    "metadata": {"a": "b"},
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
}
KEY = {"name": "ann", "role": "user", "limits": {"requests_per_minute": 5, "storage_bytes": 10**9}}


@dataclass(frozen=True, slots=True)
class Attack:
    """One connection: the bytes to send, and the method that the answer is read as."""

    kind: str
    data: bytes
    method: str = "GET"


class Attacker:
    """Makes attacks. headers: those of valid requests. real: ids that exist."""

    def __init__(self, seed: int, headers: dict[str, str], real: dict[str, str]) -> None:
        self.random = random.Random(seed)  # noqa: S311  (not for secrets)
        self.headers, self.real = headers, real
        self._kinds: tuple[Callable[[], Attack], ...] = (
            self.mutated_body,
            self.mutated_body,
            self.name,
            self.traversal,
            self.header,
            self.upload,
            self.broken,
            self.chunked,
            self.query,
        )

    def attack(self) -> Attack:
        """Return the next attack."""
        return self.random.choice(self._kinds)()

    def mutated_body(self) -> Attack:
        """A valid JSON body with a few changes, some of them in its bytes."""
        path, valid = self.random.choice((("/v1/extractions", BATCH), ("/v1/keys", KEY)))
        body = json.loads(json.dumps(valid))
        if self.random.random() < 0.7:
            body.pop("archive", None)
        for _ in range(self.random.randint(1, 3)):
            body = self.mutate(body)
        ascii_only = self.random.random() < 0.8
        data = json.dumps(body, ensure_ascii=ascii_only).encode(errors="surrogatepass")
        if self.random.random() < 0.3:
            data = self.damage(data)
        return self._request("mutated body", "POST", path, data, {"Content-Type": "application/json"})

    def mutate(self, value: Any) -> Any:
        """Return a JSON value with one change somewhere."""
        choose = self.random.choice
        if isinstance(value, dict) and value and self.random.random() < 0.85:
            key = choose(list(value))
            change = self.random.random()
            if change < 0.6:
                return value | {key: self.mutate(value[key])}
            rest = {name: inner for name, inner in value.items() if name != key}
            return rest if change < 0.7 else rest | {choose((*TEXTS, "id", "custom_id", "__class__")): value[key]}
        if isinstance(value, list) and value and self.random.random() < 0.85:
            at, change = self.random.randrange(len(value)), self.random.random()
            if change < 0.7:
                return [*value[:at], self.mutate(value[at]), *value[at + 1 :]]
            return value[:at] + value[at + 1 :] if change < 0.8 else value * choose((2, 50))
        deep: Any = []
        for _ in range(choose((1, 99, 300))):
            deep = [deep]
        return choose((*TEXTS, *VALUES, deep, {str(n): n for n in range(200)}, value))

    def damage(self, data: bytes) -> bytes:
        """Return bytes with one part cut out, repeated or overwritten."""
        start, end = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
        middle = self.random.choice((b"", data[start:end] * 2, self.random.randbytes(5), b"\xff\xfe\0", b"[" * 1000))
        return data[:start] + middle + data[end:]

    def name(self) -> Attack:
        """A hostile id or name in a path."""
        route = self.random.choice(
            (
                "/v1/extractions/{}",
                "/v1/extractions/{}/events",
                "/v1/extractions/{}/results",
                "/v1/files/{}",
                "/v1/files/{}/content",
                "/v1/archives/{}",
                "/v1/keys/{}",
                "/{}",
                "/v1/archives/{}/zarr/zarr.json",
                "/v1/extractions/{}/analysis/report.html",
            )
        )
        method = self.random.choice(("GET", "HEAD", "DELETE"))
        return self._request("name", method, route.format(self._encode(self.random.choice(NAMES + CLIMBS))))

    def traversal(self) -> Attack:
        """A path that tries to leave the folder of an archive, of an analysis or of the files."""
        climb = self.random.choice((*CLIMBS, *NAMES))
        steps = self.random.choice(("/", "%2f", "\\", "%5c", "//")).join([climb] * self.random.randint(1, 6))
        start = self.random.choice(
            (
                "/v1/archives/kept/zarr/",
                "/v1/archives/kept/zarr/neuron/",
                "/v1/archives/link/zarr/",
                "/v1/archives/",
                "/v1/archives/kept/",
                "/v1/files/",
                "/v1/extractions/",
                "/v1/archives/kept/zarr/linked/",
                f"/v1/extractions/{self.real['job_id']}/analysis/",
                f"/v1/files/{self.real['file_id']}/",
                "/",
                "",
            )
        )
        target = self.random.choice(SECRETS)
        path = start + self._encode(self.random.choice((f"{steps}/{target}", target, f"{steps}{target}", steps)))
        return self._request("traversal", self.random.choice(("GET", "GET", "HEAD")), path)

    def header(self) -> Attack:
        """A valid request with one or more hostile headers."""
        headers = {}
        for name, values in self.random.sample(
            [
                ("Range", RANGES),
                ("If-None-Match", ETAGS),
                ("If-Range", ETAGS),
                ("If-Modified-Since", ETAGS + NUMBERS),
                ("Idempotency-Key", ETAGS + NUMBERS),
                ("Last-Event-ID", NUMBERS),
                ("Host", HOSTS),
                ("Origin", HOSTS),
                ("Content-Length", NUMBERS),
                ("Content-Type", TYPES),
                ("Authorization", ("Bearer", "Basic a", "\xff", "x" * 9000)),
                ("X-Request-Id", ETAGS + NUMBERS),
                ("Transfer-Encoding", ("chunked", "gzip", "identity", "chunked, chunked")),
                ("Expect", ("100-continue", "x")),
                ("Upgrade", ("websocket", "h2c")),
                ("Connection", ("upgrade", "x", "")),
                ("X-Forwarded-Host", HOSTS),
                ("traceparent", NUMBERS),
                ("Accept-Encoding", ("gzip", "*;q=2")),
            ],
            self.random.randint(1, 3),
        ):
            headers[name] = self.random.choice(values)
        path = self.random.choice(
            (
                "/v1/archives/kept/zarr/zarr.json",
                f"/v1/files/{self.real['file_id']}/content",
                f"/v1/extractions/{self.real['job_id']}/events",
                "/v1/extractions",
                "/health",
            )
        )
        method, body = ("POST", json.dumps(BATCH).encode()) if path == "/v1/extractions" else ("GET", b"")
        return self._request("header", method, path, body, headers)

    def upload(self) -> Attack:
        """A file, or a form, with damage or with lines that are no instructions."""
        items = [self.mutate(one) if self.random.random() < 0.5 else one for one in BATCH["instructions"]]
        lines = [json.dumps(item).encode(errors="surrogatepass") for item in items]
        content = self.random.choice((b"\n", b"\r\n", b"\n\n\0")).join(lines)
        kind = self.random.choice(("application/jsonl", "application/octet-stream", "multipart/form-data; boundary=b"))
        if kind.endswith("=b"):
            field = self.random.choice(("file", "file", "purpose", "filename", "\xff", "a" * 5000))
            file = self._encode(self.random.choice(NAMES + CLIMBS)).replace("\r", "").replace("\n", "")
            head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{file}"\r\n\r\n'
            content = head.encode("latin-1", "replace") + content + b"\r\n--b--\r\n"
        if self.random.random() < 0.5:
            content = self.damage(content)
        name = quote(self.random.choice(NAMES + CLIMBS), errors="surrogatepass")
        query = f"?filename={name}&expires_after[seconds]={quote(self.random.choice(NUMBERS))}"
        path = "/v1/files" + (query if self.random.random() < 0.3 else "")
        return self._request("upload", "POST", path, content, {"Content-Type": kind})

    def query(self) -> Attack:
        """A list with hostile parameters."""
        names = ("limit", "after", "state", "model", "created_after", "created_before", "metadata", "x", "limit[]")
        value = self.random.choice(
            (
                *NUMBERS,
                *NAMES,
                *CLIMBS,
                "a:b",
                ":",
                "2026-01-01T00:00:00Z",
                "9999-12-31T23:59:60Z",
                "0001-01-01T00:00:00+23:59",
                "2026-01-01",
            )
        )
        encoded = value if "%" in value and "\n" not in value else quote(value, errors="surrogatepass")
        path = self.random.choice(("/v1/extractions", "/v1/files", "/v1/archives", "/v1/keys"))
        return self._request("query", "GET", f"{path}?{self.random.choice(names)}={encoded}&limit=5")

    def broken(self) -> Attack:
        """Bytes that are hardly HTTP: damage in a request, a wrong version, too much of something, an early end."""
        whole = self._request("", "POST", "/v1/extractions", json.dumps(BATCH).encode()).data
        line = f"{self.random.choice(METHODS)} {self.random.choice(('/health', '*', 'http://h/', 'h:1', ''))} "
        line += self.random.choice(("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "", "HTTP/1.1\r\nX:\r\n folded"))
        data = self.random.choice(
            (
                self.damage(whole),
                whole[: self.random.randrange(len(whole))],
                self.random.randbytes(200),
                whole * 3,
                f"{line}\r\nHost: localhost\r\n\r\n".encode(),
                f"{line}\n\n".encode(),
                b"\x16\x03\x01" + whole,
                b"\0" * 2000,
                b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
                b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            )
        )
        return Attack("broken", data)

    def chunked(self) -> Attack:
        """A chunked body, some with malformed chunks or without an end."""
        body = json.dumps(BATCH | {"archive": None}).encode()
        cut = self.random.randrange(len(body))
        chunks = (
            b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part) + b"0\r\n\r\n"
        )
        if self.random.random() < 0.6:
            chunks = self.random.choice(
                (
                    self.damage(chunks),
                    chunks[:cut],
                    b"-1\r\na\r\n0\r\n\r\n",
                    b"f" * 40 + b"\r\n",
                    b"0;a=b\r\nX: y\r\n\r\n",
                )
            )
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        path = self.random.choice(("/v1/extractions", "/v1/files", "/v1/keys"))
        return Attack("chunked", self._head("POST", path, headers) + chunks, "POST")

    def _request(
        self, kind: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Attack:
        length = {"Content-Length": str(len(body))} if body else {}
        return Attack(kind, self._head(method, path, length | (headers or {})) + body, method)

    def _head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        lines = {"Host": "localhost", "Connection": "close"} | self.headers | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1", "replace")
        return f"{method} {path} HTTP/1.1\r\n".encode(errors="surrogateescape") + head + b"\r\n"

    def _encode(self, path: str) -> str:
        """Return a path as it is, percent-encoded, or encoded twice."""
        way = self.random.random()
        if way < 0.4:
            return path
        once = quote(path, safe="%" if way < 0.8 else "", errors="surrogatepass")
        return once if way < 0.9 else quote(once, safe="")

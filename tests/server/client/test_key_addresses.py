"""An API key goes only to servers that the user named, and follows no redirect to another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from sparcom_cli.main import cli
from sparcom_client import Client, ServerError
from sparcom_data.archive import open_archive
from sparcom_data.errors import SparcomError

OWN, DEFAULT = "http://lab:9000", "http://127.0.0.1:8000"
ARCHIVE = "/v1/archives/a/zarr"


@contextmanager
def listener(target: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """Serve 404, or redirects to `target`; give the address and the Authorization header of each request."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(307 if target else 404)
            if target:
                self.send_header("Location", target + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815  (names of http.server)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("server", "address", "is_sent"),
    [
        (OWN, OWN, True),
        (f"{OWN}/prefix/", f"{OWN}/prefix", True),
        ("http://lab", "http://lab:80", True),
        (None, DEFAULT, True),
        ("", DEFAULT, True),
        (None, OWN, False),
        (OWN, DEFAULT, False),
        (OWN, "http://lab:9001", False),
        (OWN, "https://lab:9000", False),
        (OWN, "http://lab.evil:9000", False),
        (OWN, "http://lab:9000@evil:9000", False),
        (OWN, "http://evil/?http://lab:9000", False),
    ],
)
def test_the_key_of_the_environment_goes_to_its_server(
    server: str | None, address: str, is_sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPARCOM_API_KEY belongs to SPARCOM_SERVER: verify sends it to no other scheme, host or port. One that is given
    with --key goes to every archive that the command names."""
    sent: list[Any] = []

    def opened(where: str, headers: Any) -> None:
        sent.append(headers)
        raise SparcomError(where)

    monkeypatch.setattr("sparcom_data.archive.open_archive", opened)
    environment = {"SPARCOM_API_KEY": "secret", "SPARCOM_SERVER": server}
    CliRunner().invoke(cli, ["verify", address + ARCHIVE], env=environment)
    CliRunner().invoke(cli, ["verify", address + ARCHIVE, "--key", "mine"], env=environment)
    given = {"Authorization": "Bearer mine"}
    assert sent == [{"Authorization": "Bearer secret"} if is_sent else None, given]


def test_no_key_follows_a_redirect() -> None:
    """The reader of archives follows it without the key; the client refuses to follow it."""
    with ExitStack() as servers:
        other, theirs = servers.enter_context(listener())
        own, ours = servers.enter_context(listener(other))
        with pytest.raises(SparcomError):
            open_archive(own + ARCHIVE, headers={"Authorization": "Bearer secret"})
        assert set(ours) == {"Bearer secret"}
        assert theirs
        assert set(theirs) == {None}
        theirs.clear()
        with Client(own, "secret", patience=0) as client:
            for ask in (client.models, lambda: client.job("a"), lambda: client.submit([{"id": "a", "text": "a"}])):
                with pytest.raises(ServerError, match="307"):
                    ask()
        assert theirs == []

"""Read an archive's store over HTTP, or another protocol of fsspec."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from sparcom_data.errors import MissingExtraError
from sparcom_data.extras import install_command

BUSY = frozenset({429, 502, 503, 504})
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each retry, where the server asks for none
MAX_DELAY = 60.0


class RemoteStore(WrapperStore[FsspecStore]):
    """A read-only store at an address. Retries while the server is busy; other refusals raise OSError.

    fsspec raises errors of its own for HTTP statuses; all have the attribute `status`.
    """

    @classmethod
    def at(cls, address: str, headers: Mapping[str, str] | None = None) -> RemoteStore:
        """Return the store at an address. headers: sent with every request. Raises MissingExtraError without fsspec."""
        options = {"client_kwargs": {"headers": dict(headers)}} if headers else None
        try:
            return cls(FsspecStore.from_url(address, storage_options=options, read_only=True))
        except ImportError as error:
            raise MissingExtraError(
                f"reading an archive at an address needs the package {error.name or 'fsspec'!r}, which is not "
                f"installed. Install the extra client: {install_command('client')}"
            ) from error

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read one value, or a part of it; None if the key is missing."""
        for delay in (*DELAYS, None):
            try:
                return await super().get(key, prototype, byte_range)
            except Exception as error:
                status = getattr(error, "status", None)
                if not isinstance(status, int):
                    raise
                asked = (getattr(error, "headers", None) or {}).get("Retry-After", "")
                if delay is None or status not in BUSY or (asked.isdecimal() and float(asked) > MAX_DELAY):
                    raise _refused(status, asked) from error
                await asyncio.sleep(float(asked) if asked.isdecimal() else delay)
        return None


def _refused(status: int, asked: str) -> OSError:
    if status == 401:
        remedy = "Give --key, or set SPARCOM_API_KEY and, for the server it belongs to, SPARCOM_SERVER"
        return PermissionError(f"status 401: the server wants an API key. {remedy}")
    return OSError(f"status {status}{f', to be tried again after {asked} s' if asked else ''}")


def address_remedy(address: str) -> str:
    """Return the advice for an address at which there is no archive."""
    if address.rstrip("/").endswith("/zarr"):
        return "check the address"
    return f"the address of an archive's store ends in /zarr. Try {address.rstrip('/')}/zarr"

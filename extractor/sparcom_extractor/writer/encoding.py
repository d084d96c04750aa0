"""A chunk's values as the bytes of its file, and back, as Zarr's codecs do it.

    masks   bytes, crc32c           they hardly compress (DECISIONS.md)
    counts  bytes, blosc, crc32c    zstd level 3 after a shuffle of the four bytes of each number

Written by hand because a writer thread needs no codec pipeline for this; tests hold it against zarr-python's. It does
not know files.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]  # no types are shipped
from numpy.typing import NDArray

from sparcom_data.storage import crc32c_suffix, type_bytes

Compressor = Literal["blosc"]

CRC_BYTES = 4
# The width of a number is taken from the array, so that typesize is 4 for uint32, as in the array's metadata.
_BLOSC = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)


class EncodingError(ValueError):
    """Bytes that are no chunk: cut, changed, or of another shape."""


def encode(values: NDArray[Any], compressor: Compressor | None) -> list[type_bytes]:
    """The parts of a chunk's file, one after the other. values: contiguous, little-endian."""
    body: type_bytes = values.reshape(-1).data.cast("B") if compressor is None else _BLOSC.encode(values)
    return [body, crc32c_suffix(body)]


def decode(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], compressor: Compressor | None) -> NDArray[Any]:
    """The values of a chunk's file, read-only.

    Raises:
        EncodingError: the checksum or the length is wrong.
    """
    body, checksum = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if crc32c_suffix(body) != checksum:
        raise EncodingError("its checksum is wrong")
    if compressor is not None:
        try:
            body = _BLOSC.decode(body)
        except RuntimeError as error:
            raise EncodingError(f"blosc cannot read it ({error})") from error
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise EncodingError(f"{len(body)} bytes are not a chunk of shape {shape} and type {dtype}")
    return np.frombuffer(body, dtype=dtype).reshape(shape)

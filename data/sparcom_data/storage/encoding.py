"""Encode chunks as zarr's codecs do, without zarr-python's pipeline. Tests compare the bytes with zarr-python's.

Masks and top-k experts: bytes, crc32c. Counts: bytes, blosc (zstd level 3 after a byte shuffle), crc32c.

    bytes   https://zarr-specs.readthedocs.io/en/latest/v3/codecs/bytes/index.html    C order; here little-endian
    blosc   https://zarr-specs.readthedocs.io/en/latest/v3/codecs/blosc/index.html    typesize: 4 for uint32
    crc32c  https://zarr-specs.readthedocs.io/en/latest/v3/codecs/crc32c/index.html   4 bytes appended, little-endian
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from sparcom_data.storage import crc32c_suffix, type_bytes

CRC_BYTES = 4
_BLOSC = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)  # the typesize is the array's itemsize


def encode(values: NDArray[Any], compressed: bool) -> list[type_bytes]:
    """Return the consecutive parts of a chunk's file. values: contiguous, little-endian."""
    body: type_bytes = _BLOSC.encode(values) if compressed else values.reshape(-1).data.cast("B")
    return [body, crc32c_suffix(body)]


def decode(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], compressed: bool) -> NDArray[Any]:
    """Return the values of a chunk's file, read-only.

    Raises:
        ValueError, RuntimeError (from blosc): the bytes are truncated or altered, or have another shape or codec.
    """
    body, checksum = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if crc32c_suffix(body) != checksum:
        raise ValueError("its checksum is wrong")
    if compressed:
        body = _BLOSC.decode(body)
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes are not a chunk of shape {shape} and type {dtype}")
    return np.frombuffer(body, dtype=dtype).reshape(shape)

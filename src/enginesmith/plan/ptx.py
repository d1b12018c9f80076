"""The PTX of a plan's kernels, for GPUs newer than the plan: compressed JSON, kernel name -> text.

Compressed it is a sixth: some 180 kB for a ResNet-50 of 51 MB, about what the C++ texts take. It
is unpacked only where it is needed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

from enginesmith.errors import PlanError

LARGEST = 1 << 30
"""Bytes that the texts may have together."""


def pack_ptx(texts: Mapping[str, str]) -> bytes:
    """The bytes that a plan holds; none without texts."""
    if not texts:
        return b""
    return zlib.compress(json.dumps(texts, sort_keys=True, separators=(",", ":")).encode(), 9)


def unpack_ptx(data: bytes | memoryview) -> dict[str, str]:
    """The texts by kernel. PlanError if the bytes are none of `pack_ptx`."""
    if not len(data):
        return {}
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(data, LARGEST)
        texts = json.loads(text) if unpacking.eof else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise PlanError(DAMAGED) from error
    if not isinstance(texts, dict) or not all(isinstance(t, str) for t in texts.values()):
        raise PlanError(DAMAGED)
    return texts


DAMAGED = "the plan is damaged: its PTX can't be read; build the model again"

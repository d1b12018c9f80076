"""Plans as files: one safetensors file, read without executing anything.

    8 bytes              length of the header, little-endian
    header               JSON, padded with spaces so that the data starts at a multiple of 64
      __metadata__       format, version, plan (JSON text of every small field of Plan),
                         header, weights, code, sources, ptx, graph (SHA-256, see below)
      weights            U8, first in the data: 64-byte aligned, memory-mapped by `load`
      code               U8, the shared object, or the machine code of a GPU's kernels
      sources            U8, JSON text: kernel name -> C or CUDA C++ text
      ptx                U8, see plan/ptx.py
      graph              U8, see planner/carry.py

Any safetensors reader can list it. The hash of a tensor is a tree of two levels (the SHA-256 of the
SHA-256s of its 16 MiB pieces), so that threads share the work; that of the header is taken with its
own 64 digits set to zeros. Together they cover every byte. The same plan gives the same bytes.

A loaded plan's weights are the mapped file: replace a plan file (as `save` does), never overwrite
one in place while an engine uses it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, get_type_hints

from enginesmith.errors import PlanError
from enginesmith.plan.codec import decode, encode
from enginesmith.plan.plan import FORMAT_VERSION, Plan
from enginesmith.plan.validate import validate

FORMAT = "enginesmith-plan"
TENSORS = ("weights", "code", "sources", "ptx", "graph")
"""In the order of their data."""
MAX_HEADER = 100 << 20
"""Bytes; the limit of the safetensors format."""
PIECE = 16 << 20
"""Bytes hashed at a time by one thread."""
NO_HASH = "0" * 64
KINDS = get_type_hints(Plan)
"""The types of Plan's fields."""
REBUILD = "copy the file again, or build the model again"

Data = bytes | memoryview


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write `plan` to `path`, all or nothing: a temporary file in the same folder, synced, renamed.

    PlanError if it can't be written (no permission, no space, no folder); what was there is intact.
    """
    path = Path(path)
    sources = json.dumps(plan.sources, sort_keys=True, separators=(",", ":")).encode()
    data: tuple[Data, ...] = (plan.weights, plan.code, sources, plan.ptx, plan.graph)
    chunks = [_header(plan, data), *data]
    temporary = path.with_name(f".{path.name[:64]}-{secrets.token_hex(8)}.tmp")
    try:
        # "x": never through a link or over a file of somebody else's.
        with temporary.open("xb") as file:
            try:
                _write(file, chunks)
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise PlanError(
            f"can't save the plan as {path}: {error.strerror or error}; nothing was changed there. "
            "Choose a folder that exists, is writable and has "
            f"{sum(map(len, chunks)) / 1e6:.1f} MB free"
        ) from error


def _write(file: BinaryIO, chunks: Sequence[Data]) -> None:
    for chunk in chunks:
        file.write(chunk)
    file.flush()


def load(path: str | os.PathLike[str]) -> Plan:
    """Read and check a plan. PlanError names cause and remedy; nothing in it is executed."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise PlanError(f"{path} is not a plan: it has {size} bytes; {REBUILD}")
            # One pass of the kernel over the page tables is cheaper than a fault per page.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_POPULATE", 0)
            mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
    except OSError as error:
        raise PlanError(f"can't read the plan {path}: {error.strerror or error}") from error
    try:
        return _parse(memoryview(mapped))
    except PlanError as error:
        raise PlanError(f"can't load {path}: {error}") from error


def _parse(file: memoryview) -> Plan:
    metadata, raw, data = _read_header(file)
    _check_hashes(metadata, raw, data)
    fields = _json(metadata["plan"].encode(), "plan")
    if not isinstance(fields, dict) or fields.keys() != KINDS.keys() - set(TENSORS):
        raise PlanError(f"the header is damaged: other fields than a plan's; {REBUILD}")
    fields["sources"] = _json(data["sources"], "sources")
    values = {name: decode(KINDS[name], value, name) for name, value in fields.items()}
    for name in ("weights", "ptx", "graph"):
        values[name] = data[name]
    plan = Plan(**values, code=bytes(data["code"]))
    validate(plan)
    return plan


def _header(plan: Plan, data: Sequence[Data]) -> bytes:
    fields = encode(replace(plan, sources={}, code=b"", weights=b"", ptx=b"", graph=b""))
    for name in TENSORS:
        del fields[name]
    metadata = {
        "format": FORMAT,
        "header": NO_HASH,
        "plan": json.dumps(fields, separators=(",", ":"), allow_nan=False),
        "version": str(FORMAT_VERSION),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, content in zip(TENSORS, data, strict=True):
        metadata[name] = tree_hash(content)
        span = [at, at + len(content)]
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": span}
        at = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    # The first such run of digits is the header's own: the other hashes can't be all zeros, and the
    # metadata's `format` before it is ours.
    text = text.replace(NO_HASH.encode(), hashlib.sha256(text).hexdigest().encode(), 1)
    return struct.pack("<Q", len(text)) + text


def _read_header(file: memoryview) -> tuple[dict[str, str], bytes, dict[str, memoryview]]:
    """The metadata, the header's bytes and the tensors; types, bounds and version are checked."""
    (length,) = struct.unpack("<Q", file[:8])
    if length > MAX_HEADER:
        raise PlanError(f"not a plan, or damaged: its header claims {length} bytes; {REBUILD}")
    if 8 + length > len(file):
        raise PlanError(f"the file is truncated: {len(file)} bytes, not even its header; {REBUILD}")
    raw = bytes(file[8 : 8 + length])
    header = _json(raw, "header")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise PlanError(f"not a plan of Enginesmith; {REBUILD}")
    _check_version(metadata.get("version"))
    wanted = {"format", "version", "plan", "header", *TENSORS}
    strings = all(isinstance(value, str) for value in metadata.values())
    if metadata.keys() != wanted or not strings or header.keys() != {"__metadata__", *TENSORS}:
        raise PlanError(f"the header is damaged; {REBUILD}")
    return metadata, raw, _tensors(header, file[8 + length :])


def _check_version(version: Any) -> None:
    if not isinstance(version, str) or not (version.isascii() and version.isdigit()):
        raise PlanError(f"the header is damaged: version {version!r}; {REBUILD}")
    # The length first: int() of a very long text is slow, and refused by newer Pythons.
    if len(version) > 9 or int(version) > FORMAT_VERSION:
        raise PlanError(
            f"made by a newer Enginesmith (plan format {version[:9]}, this one reads "
            f"{FORMAT_VERSION}); upgrade with: pip install --upgrade enginesmith"
        )
    if int(version) < FORMAT_VERSION:
        raise PlanError(
            f"made by an older Enginesmith (plan format {version}, this one reads "
            f"{FORMAT_VERSION}); build the model again"
        )


def _tensors(header: dict[str, Any], data: memoryview) -> dict[str, memoryview]:
    tensors, at = {}, 0
    for name in TENSORS:
        info = header[name]
        span = info.get("data_offsets") if isinstance(info, dict) else None
        if (
            not isinstance(span, list)
            or len(span) != 2
            or not all(type(v) is int for v in span)
            or not at == span[0] <= span[1]
        ):
            raise PlanError(f"the header is damaged: {name} has no valid place; {REBUILD}")
        tensors[name], at = data[span[0] : span[1]], span[1]
    if at != len(data):
        what = "truncated" if at > len(data) else "longer than its header says"
        raise PlanError(f"the file is {what}: {len(data)} of {at} bytes of data; {REBUILD}")
    return tensors


def _check_hashes(metadata: dict[str, str], raw: bytes, data: dict[str, memoryview]) -> None:
    own = metadata["header"].encode()
    blank = raw.replace(own, NO_HASH.encode(), 1)
    if len(own) != 64 or hashlib.sha256(blank).hexdigest().encode() != own:
        raise PlanError(f"the header is damaged: its hash differs; {REBUILD}")
    for name in TENSORS:
        if tree_hash(data[name]) != metadata[name]:
            raise PlanError(f"the file is damaged: the hash of its {name} differs; {REBUILD}")


def tree_hash(data: Data) -> str:
    """SHA-256 of the SHA-256s of the 16 MiB pieces of `data`, in hexadecimal."""
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    if len(pieces) > 1:
        with ThreadPoolExecutor(min(4, len(pieces))) as pool:
            digests = list(pool.map(_digest, [memoryview(p) for p in pieces]))
    else:
        digests = [_digest(piece) for piece in pieces]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(piece: Data) -> bytes:
    return hashlib.sha256(piece).digest()


def _json(text: Data, what: str) -> Any:
    try:
        return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"not a plan, or damaged: its {what} is no JSON; {REBUILD}") from error

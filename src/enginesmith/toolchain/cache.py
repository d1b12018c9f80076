"""The content-addressed artifact cache: bytes by the hash of everything that made them.

Safe with several processes and a kill at any moment: a file is written under a temporary name and
renamed, and an entry carries its own hash, so a damaged one counts as absent.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from enginesmith.errors import BuildError


class ArtifactCache:
    """A folder of artifacts. `folder` is made when first written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(*parts: str | bytes) -> str:
        """The hash of the parts, each with its length so that they can't run together."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / "artifacts" / key[:2] / key[2:]

    def require(self) -> None:
        """Make the folder. BuildError if it can't be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def get(self, key: str) -> bytes | None:
        """The artifact, or None if absent or damaged."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        return data[32:]

    def put(self, key: str, data: bytes) -> None:
        """Store an artifact; atomic. BuildError if the folder can't be written."""
        write_atomically(self._path(key), hashlib.sha256(data).digest() + data)

    def keep_failed(self, key: str, suffix: str, source: str | None, log: str) -> Path:
        """Keep what a compiler refused, and why, under the folder's `failed`: the source (if it is
        one file) with the given suffix and the log. Returns a pattern that names both."""
        kept = self.folder / "failed" / f"{key[:16]}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(log)
        if source is not None:
            kept.with_suffix(suffix).write_text(source)
        return kept.with_suffix(".*")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file in the same folder, synced, then renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:16]}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> BuildError:
    return BuildError(
        f"can't write {path}: {error.strerror}; free space there, or set ENGINESMITH_CACHE "
        "to a writable folder"
    )

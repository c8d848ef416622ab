"""Rows of numbers on disk, one for each key: appended as they are computed, read through a memory map.

A process killed while it appends costs the rows of its last batch; a damaged row is as if it were not there.
"""

from __future__ import annotations

import logging
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from finetune.errors import FinetuneError
from finetune.files import make_folder

log = logging.getLogger(__name__)

Rows = NDArray[np.float32]
# Written after its row, so that a row counts only when it is whole.
RECORD = np.dtype([("key", "S32"), ("crc", "<u4")])
# Rows are gathered this many at a time.
CHUNK = 1024
# What was used within it may be in use by another process.
IN_USE_S = 86_400.0


class FeatureStore:
    """The rows in one folder, each of `width` numbers; keys: 32 bytes each."""

    def __init__(self, folder: Path, width: int) -> None:
        with _saying_what_to_do(folder):
            make_folder(folder)
        self.folder, self.width = folder, width
        self._rows, self._index = folder / "rows.f32", folder / "index"
        self._numbers: dict[bytes, int] = {}
        self._records = np.empty(0, RECORD)
        # rows that were found whole: every feature set asks again, and to read all of them each time takes long
        self._sound: set[int] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look again at what is there, and note that it is used."""
        with _saying_what_to_do(self.folder):
            self._index.touch()
            self._rows.touch()
        whole = min(self._index.stat().st_size // RECORD.itemsize, self._rows.stat().st_size // (4 * self.width))
        self._records = np.fromfile(self._index, RECORD, count=whole)
        # fixed-width bytes lose their trailing zeros on the way out
        keys = (key.ljust(32, b"\0") for key in self._records["key"].tolist())
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._sound.clear()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the places of the keys that have no sound row."""
        numbers = [self._numbers.get(key, -1) for key in keys]
        mapped = self._mapped()
        for number in {*numbers} - self._sound - {-1}:
            if zlib.crc32(mapped[number].tobytes()) == int(self._records["crc"][number]):
                self._sound.add(number)
        return [place for place, number in enumerate(numbers) if number not in self._sound]

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Append rows (N, width) under their keys, which replaces what was there; only inside `writing`."""
        if rows.shape != (len(keys), self.width) or rows.dtype != np.float32:
            raise ValueError(f"rows of {rows.shape} {rows.dtype} for {len(keys)} keys of width {self.width}")
        first = len(self._records)
        records = np.array([(key, zlib.crc32(row.tobytes())) for key, row in zip(keys, rows, strict=True)], RECORD)
        _write_at(self._rows, first * 4 * self.width, rows.tobytes())
        _write_at(self._index, first * RECORD.itemsize, records.tobytes())
        self._records = np.concatenate([self._records, records])
        self._numbers.update((key, first + number) for number, key in enumerate(keys))

    def gather(self, keys: Sequence[bytes], columns: slice) -> Rows:
        """Return (N, columns) in the order of the keys, all of which must be there."""
        numbers = np.array([self._numbers[key] for key in keys], np.int64)
        mapped = self._mapped()
        gathered = np.empty((len(keys), len(range(self.width)[columns])), np.float32)
        for start in range(0, len(keys), CHUNK):
            gathered[start : start + CHUNK] = mapped[numbers[start : start + CHUNK], columns]
        return gathered

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for this process; another that computes the same rows is waited for, and its rows used."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process computes these features; waiting for it")
            lock.acquire()
        try:
            self.refresh()
            yield
        finally:
            lock.release()

    def _mapped(self) -> Rows:
        if not len(self._records):
            return np.empty((0, self.width), np.float32)
        return np.memmap(self._rows, np.float32, "r", shape=(len(self._records), self.width))


def make_room(root: Path, most_bytes: float) -> None:
    """Delete the folders of `root` that were used longest ago until the others take at most `most_bytes`."""
    used = {}
    for index in root.glob("*/index"):
        with suppress(FileNotFoundError):
            used[index] = index.stat().st_mtime, sum(file.stat().st_size for file in index.parent.iterdir())
    total = 0
    for index, (used_at, size) in sorted(used.items(), key=lambda item: item[1], reverse=True):
        total += size
        if total > most_bytes and time.time() - used_at > IN_USE_S:
            # another process may be at it too
            shutil.rmtree(index.parent, ignore_errors=True)


def _write_at(path: Path, offset: int, content: bytes) -> None:
    """Write behind what counts; what a killed process left there goes."""
    with _saying_what_to_do(path), path.open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(content)


@contextmanager
def _saying_what_to_do(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, FinetuneError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise FinetuneError(
            f"{path} cannot be written: {reason}; make room, or name another folder for kept features with probe.cache="
        ) from None

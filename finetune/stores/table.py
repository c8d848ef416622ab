"""The files that a table names, wherever they lie."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import AddressError
from finetune.stores.folder import nearest_beside
from finetune.stores.remote import list_url, read_url, url_is_file
from finetune.stores.store import File, is_url, split_links


@dataclass(frozen=True)
class TableStore:
    """The files that the rows of a table name: relative to the table, absolute, or at an address of their own."""

    address: str

    def read(self, path: str) -> bytes:
        return _read(self._place(path))

    def exists(self, path: str) -> bool:
        place = self._place(path)
        links = split_links(place)
        return url_is_file(links.folder, links.name) if is_url(place) else Path(place).is_file()

    def read_table(self) -> bytes:
        """Return the table itself; raises AddressError where it cannot be read."""
        try:
            return _read(self.address)
        except FileNotFoundError:
            hint = "" if is_url(self.address) else nearest_beside(Path(self.address))
            raise AddressError(f"{self.address}: no such file{hint}") from None
        except OSError as error:
            raise AddressError(f"{self.address} cannot be read: {(error.strerror or str(error)).lower()}") from None

    def find(self, paths: Sequence[str]) -> Iterator[File]:
        """Yield what is known of each path in order. A folder at an address is listed once for all of its files."""
        listed: dict[str, dict[str, File]] = {}
        for path in paths:
            place = self._place(path)
            if not is_url(place):
                yield _stat(place, path)
                continue
            folder, name = split_links(place).folder, split_links(place).name
            if folder not in listed:
                listed[folder] = {found.path: found for found in list_url(folder) if isinstance(found, File)}
            there = listed[folder].get(name)
            yield File(path, there.size, there.mtime_ns) if there else File(path, 0, 0, "no such file")

    def _place(self, path: str) -> str:
        """Return the address of a row's file."""
        if path.startswith("file://"):
            return path.removeprefix("file://")
        if "://" in path or path.startswith("/"):
            return path
        head, table, tail = split_links(self.address)
        return f"{head}{posixpath.join(posixpath.dirname(table), path)}{tail}"


def _read(place: str) -> bytes:
    if not is_url(place):
        return Path(place).read_bytes()
    links = split_links(place)
    return read_url(links.folder, links.name)


def _stat(place: str, path: str) -> File:
    try:
        status = os.stat(place)  # noqa: PTH116  # as fast as listing a folder, which a Path is not
    except (FileNotFoundError, NotADirectoryError):
        return File(path, 0, 0, "no such file")
    except (OSError, ValueError) as error:
        return File(path, 0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    regular = stat.S_ISREG(status.st_mode)
    return File(path, status.st_size, status.st_mtime_ns, "" if regular else "not a regular file")

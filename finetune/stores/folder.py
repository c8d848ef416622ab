"""A folder on this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import AddressError, nearest
from finetune.stores.store import File, Folder, Found, Note, is_hidden, readable


@dataclass(frozen=True)
class FolderStore:
    """A folder on this machine, with the files and folders that links in it lead to."""

    address: str

    def read(self, path: str) -> bytes:
        return Path(self.address, path).read_bytes()

    def exists(self, path: str) -> bool:
        return Path(self.address, path).is_file()

    def walk(self) -> Iterator[Found]:
        """Yield every file and folder below, in no order, and what is odd about them; hidden ones are passed over.

        Raises AddressError where there is no such folder.
        """
        _require_folder(self.address)
        root = os.path.realpath(self.address)
        pending = [_Place("", root, ())]
        while pending:
            place = pending.pop()
            try:
                with os.scandir(Path(self.address, place.path)) as scan:
                    entries = [entry for entry in scan if not is_hidden(entry.name)]
            except OSError as error:
                yield Note("unreadable_folder", readable(place.path), f"cannot be opened: {_reason(error)}")
                continue
            leading_out: list[tuple[str, str]] = []
            for entry in entries:
                path = f"{place.path}/{entry.name}" if place.path else entry.name
                inner = None
                if entry.is_symlink():
                    inner = _Place(path, os.path.realpath(entry.path), (*place.origins, place.real))
                    if refused := _refusal(entry, inner):
                        yield refused
                        continue
                    if not _is_within(inner.real, root):
                        leading_out.append((readable(path), readable(inner.real)))
                if entry.is_dir():
                    yield Folder(path)
                    pending.append(inner or _Place(path, f"{place.real}/{entry.name}", place.origins))
                else:
                    yield _file(entry, path)
            yield from _notes_of_links(leading_out)


def nearest_beside(path: Path) -> str:
    """Return a hint at the name in `path`'s folder that is most like its own."""
    try:
        return nearest(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder to be listed. real: where it lies without links; origins: the real folders whose links led here."""

    path: str
    real: str
    origins: tuple[str, ...]


def _require_folder(address: str) -> None:
    try:
        os.scandir(address).close()
    except FileNotFoundError:
        raise AddressError(f"{address}: no such folder{nearest_beside(Path(address))}") from None
    except NotADirectoryError:
        raise AddressError(f"{address} is a file; give the folder that holds the class folders") from None
    except PermissionError:
        raise AddressError(f"{address}: no permission to read this folder") from None
    except OSError as error:
        raise AddressError(f"{address} cannot be opened: {_reason(error)}") from None


def _file(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError as error:
        return File(path, 0, 0, f"cannot be read: {error.strerror}")
    return File(path, status.st_size, status.st_mtime_ns, "" if stat.S_ISREG(status.st_mode) else "not a regular file")


def _refusal(link: os.DirEntry[str], inner: _Place) -> File | Note | None:
    """Say why a link cannot be followed, if it cannot."""
    try:
        status = link.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Note("link_loop", readable(inner.path), "leads to itself")
        nothing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return File(inner.path, 0, 0, "link to nothing" if nothing else f"cannot be read: {error.strerror}")
    # a folder that holds this link, or a link on the way here, would hold itself without end
    if stat.S_ISDIR(status.st_mode) and any(_is_within(origin, inner.real) for origin in inner.origins):
        return Note("link_loop", readable(inner.path), f"leads back to {readable(inner.real)}, which holds it")
    return None


def _notes_of_links(leading_out: list[tuple[str, str]]) -> Iterator[Note]:
    """leading_out: path and target of the links of one folder; a folder may well hold nothing but links."""
    if leading_out:
        path, target = min(leading_out)
        others = f", as do {len(leading_out) - 1} links beside it" if len(leading_out) > 1 else ""
        yield Note("link_outside", path, f"leads out, to {target}{others}")


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

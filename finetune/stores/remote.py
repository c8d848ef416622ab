"""Any address that fsspec knows: an object store, an archive, a file system in memory.

fsspec is imported when an address is opened, as the server and most commands never need it.
"""

from __future__ import annotations

import calendar
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.errors import AddressError, nearest
from finetune.stores.folder import nearest_beside
from finetune.stores.store import File, Folder, Found, is_visible, split_links

# Under these keys file systems say when a file was changed.
CHANGED = ("mtime", "LastModified", "last_modified", "updated", "date_time", "created")


@dataclass(frozen=True)
class FsspecStore:
    """The files below an fsspec address. url: the address as fsspec takes it."""

    address: str
    url: str

    def read(self, path: str) -> bytes:
        return read_url(self.url, path)

    def exists(self, path: str) -> bool:
        return url_is_file(self.url, path)

    def walk(self) -> Iterator[Found]:
        """Yield every file and folder below, in no order; raises AddressError where nothing can be listed."""
        system, root = open_url(self.address, self.url)
        try:
            found = system.find(root, withdirs=True, detail=True)
            # an empty archive has no root to ask for
            if not found and root and not system.exists(root):
                raise AddressError(f"{self.address}: no such folder{_nearest_in(system, root)}")
        except AddressError:
            raise
        except Exception as error:  # every backend has exceptions of its own
            raise AddressError(f"{self.address} cannot be listed: {_in_words(error)}") from None
        if root in found and found[root]["type"] == "file":
            raise AddressError(f"{self.address} is a file; give the folder that holds the class folders")
        for name, info in found.items():
            path = name[len(root) :].strip("/")
            if not path or not is_visible(path):
                continue
            if info["type"] == "directory":
                yield Folder(path)
            else:
                yield File(path, info.get("size") or 0, _changed_ns(info))


def open_url(address: str, url: str) -> tuple[Any, str]:
    """Return the file system of a url, opened in this process, and the url's path in it.

    Raises AddressError, which speaks of `address`.
    """
    head, path, tail = split_links(url)
    try:
        if not tail:
            return _opened(url, os.getpid(), ())
        # one opened archive for every folder in it
        system, root = _opened(head + tail, os.getpid(), _stamp(tail.rpartition("::")[2]))
        return system, _join(root, path.strip("/"))
    except ImportError as error:
        raise AddressError(f"{address} needs another package: {_in_words(error)}") from None
    except FileNotFoundError:
        archive = Path(tail.rpartition("::")[2].removeprefix("file://"))
        raise AddressError(f"{address}: no such file{nearest_beside(archive)}") from None
    except Exception as error:  # every backend has exceptions of its own
        hint = _nearest_protocol(head) if "Protocol not known" in str(error) else ""
        raise AddressError(f"{address} cannot be opened: {_in_words(error)}{hint}") from None


def read_url(url: str, path: str, span: tuple[int, int] | None = None) -> bytes:
    """Return the bytes of a file below a url, or those from span[0] to span[1]; raises OSError with a strerror."""
    system, root = open_url(url, url)
    start, end = span or (None, None)
    try:
        raw: bytes = system.cat_file(_join(root, path), start=start, end=end)
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "no such file", path) from None
    except Exception as error:  # a damaged archive, a lost connection: each backend has its own exceptions
        raise OSError(getattr(error, "errno", None) or errno.EIO, _in_words(error), path) from None
    return raw


def url_is_file(url: str, path: str) -> bool:
    """Whether there is a file below a url."""
    system, root = open_url(url, url)
    return bool(system.isfile(_join(root, path)))


def list_url(url: str) -> Iterator[File | Folder]:
    """Yield what lies directly in the folder of a url, by name; nothing where there is no such folder.

    Raises AddressError where it cannot be listed.
    """
    system, root = open_url(url, url)
    try:
        entries = system.ls(root, detail=True)
    except FileNotFoundError:
        return
    except Exception as error:  # every backend has exceptions of its own
        raise AddressError(f"{url} cannot be listed: {_in_words(error)}") from None
    for entry in entries:
        name = _name(entry)
        yield Folder(name) if entry["type"] == "directory" else File(name, entry.get("size") or 0, _changed_ns(entry))


@lru_cache(maxsize=32)
def _opened(url: str, process: int, stamp: tuple[int, ...]) -> tuple[Any, str]:
    """A file system is opened once a process, as a handle that a fork shares is read by both, and once a state of the
    archive it reads."""
    import fsspec

    system, root = fsspec.core.url_to_fs(url)
    return system, root.rstrip("/")


def _stamp(place: str) -> tuple[int, ...]:
    """Tell one state of a local file from another."""
    try:
        status = Path(place.removeprefix("file://")).stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size


def _changed_ns(info: dict[str, Any]) -> int:
    value = next((info[key] for key in CHANGED if info.get(key)), 0)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0
    if isinstance(value, datetime):
        value = value.timestamp()
    elif isinstance(value, tuple):  # a zip's, in local time without a zone
        value = calendar.timegm((*value, 0, 0, 0))
    return int(value * 1_000_000_000)


def _join(root: str, path: str) -> str:
    return "/".join(filter(None, (root, path)))


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _nearest_in(system: Any, root: str) -> str:
    parent, _, name = root.rpartition("/")
    try:
        return nearest(name, [_name(entry) for entry in system.ls(parent, detail=True)])
    except Exception:  # there may be no folder to list; the hint is only a hint
        return ""


def _nearest_protocol(head: str) -> str:
    import fsspec

    return nearest(head.removesuffix("://").rpartition("::")[2], fsspec.available_protocols())


def _in_words(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__

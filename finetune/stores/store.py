"""What every place of photos can do, whatever holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

# A photo is read whole, by as many threads as there are cores. The largest that can be decoded is half as large.
MOST_BYTES = 1_000_000_000
# What systems leave in folders and archives beside what a person put there.
LITTER = ("Thumbs.db", "__MACOSX")


class File(NamedTuple):
    """path: relative, with forward slashes; size in bytes; mtime_ns: 0 where the place keeps none.

    problem: why it cannot be opened, as far as that shows without opening it.
    """

    path: str
    size: int
    mtime_ns: int
    problem: str = ""

    @property
    def refusal(self) -> str:
        """Why it is not opened; empty if it may be."""
        if self.problem or self.size <= MOST_BYTES:
            return self.problem
        return f"{self.size / 1e9:.1f} GB is more than {MOST_BYTES / 1e9:.0f} GB"


class Folder(NamedTuple):
    """A folder, be it empty."""

    path: str


class Note(NamedTuple):
    """Something about the place rather than about one photo.

    kind: link_loop, link_outside, unreadable_folder or, of a listing, outside_classes; message: follows the path.
    """

    kind: str
    path: str
    message: str


Found = File | Folder | Note


class Store(Protocol):
    """A place that holds files under relative paths with forward slashes.

    address: as a person wrote it, absolute. A store is a value: it holds nothing open and may be pickled, forked and
    used by several threads.
    """

    @property
    def address(self) -> str: ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes; raises OSError with a strerror."""

    def exists(self, path: str) -> bool: ...


@dataclass(frozen=True)
class StoredFile:
    """One file of a store; read like a `Path`."""

    store: Store
    path: str

    def __str__(self) -> str:
        return f"{readable(self.path)} in {self.store.address}"

    def read_bytes(self) -> bytes:
        return self.store.read(self.path)


class Links(NamedTuple):
    """An address in three parts. head: protocols; path: in the first of them that has one; tail: what holds that.

    simplecache::zip://a/b::s3://c is simplecache::zip://, a/b, ::s3://c; a path on this machine has no head or tail.
    """

    head: str
    path: str
    tail: str

    @property
    def folder(self) -> str:
        """The address of the folder that this one lies in."""
        return f"{self.head}{self.path.rpartition('/')[0]}{self.tail}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def is_url(address: str) -> bool:
    """Whether an address is for fsspec rather than a path on this machine."""
    return "://" in address or "::" in address


def split_links(address: str) -> Links:
    """Take an address apart."""
    links = address.split("::") if is_url(address) else [address]
    first = next((number for number, link in enumerate(links) if "://" in link), len(links) - 1)
    protocol, separator, path = links[first].rpartition("://")
    head = "".join(f"{link}::" for link in links[:first]) + protocol + separator
    return Links(head, path, "".join(f"::{link}" for link in links[first + 1 :]))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in LITTER


def is_visible(path: str) -> bool:
    """Whether no part of a relative path is hidden."""
    return not any(map(is_hidden, path.split("/")))


def is_text(name: str) -> bool:
    """Whether a file's name can be written into text files; on Linux a name may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(name: str) -> str:
    """Return a name as one line of text: what is not UTF-8 in it, or would steer a terminal, becomes an escape."""
    text = name.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)

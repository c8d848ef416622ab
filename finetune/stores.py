"""Where photos lie, whatever holds them: their bytes by path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """A place that holds files under relative paths with forward slashes. address: as a person wrote it, absolute."""

    @property
    def address(self) -> str: ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes; raises OSError."""

    def exists(self, path: str) -> bool: ...


@dataclass(frozen=True)
class StoredFile:
    """One file of a store; read like a `Path`."""

    store: Store
    path: str

    def read_bytes(self) -> bytes:
        return self.store.read(self.path)


@dataclass(frozen=True)
class FolderStore:
    """A folder on this machine."""

    address: str

    def read(self, path: str) -> bytes:
        return Path(self.address, path).read_bytes()

    def exists(self, path: str) -> bool:
        return Path(self.address, path).is_file()


def open_store(address: str) -> Store:
    """Return the store at an address."""
    return FolderStore(address)

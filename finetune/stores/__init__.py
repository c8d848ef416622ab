"""Where photos lie, whatever holds them: a folder, an archive, an object store, the rows of a table.

An address is a path on this machine or anything that fsspec takes: s3://bucket/photos, zip://photos::archive.zip.
"""

from __future__ import annotations

from pathlib import Path

from finetune.errors import AddressError
from finetune.stores.folder import FolderStore, nearest_beside
from finetune.stores.remote import FsspecStore
from finetune.stores.store import File, Folder, Found, Note, Store, StoredFile, is_text, is_url, readable, split_links
from finetune.stores.table import TableStore
from finetune.stores.tar import SAMPLE_TEXTS, TarStore, find_shards, name_shards, split_member

__all__ = [
    "SAMPLE_TEXTS",
    "File",
    "Folder",
    "FolderStore",
    "Found",
    "FsspecStore",
    "Note",
    "Store",
    "StoredFile",
    "TableStore",
    "TarStore",
    "find_file",
    "is_text",
    "nearest_beside",
    "open_store",
    "readable",
    "split_member",
]

TABLES = (".csv", ".tsv", ".parquet")
COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_store(address: str) -> FolderStore | FsspecStore | TarStore | TableStore:
    """Return the store at an address, which may be missing: whoever reads it or walks through it is told.

    Raises AddressError for a tar file whose members cannot be read one by one.
    """
    address = address.removeprefix("file://")
    local = not is_url(address)
    if local and Path(address).is_dir():
        return find_shards(address) or FolderStore(address)
    links = split_links(address)
    name = links.name.lower()
    if links.head.endswith("tar://"):
        raise AddressError(f"{address} goes through the tar file from its start for each photo; give {links.tail[2:]}")
    if name.endswith(COMPRESSED):
        raise AddressError(f"{address} is a compressed tar file, which can only be read from its start; unpack it")
    if name.endswith(TABLES):
        return TableStore(address)
    if name.endswith(".zip"):
        return FsspecStore(address, f"zip://::{address}")
    if name.endswith(".tar"):
        return name_shards(address)
    if local:
        return FolderStore(address)
    return find_shards(address) or FsspecStore(address, address.replace("://*::", "://::", 1))


def find_file(address: str) -> StoredFile | None:
    """Return the one file at an address, None where there is an archive, a folder or nothing."""
    store = open_store(address)
    if isinstance(store, FolderStore):
        path = Path(store.address)
        return StoredFile(FolderStore(str(path.parent)), path.name) if path.is_file() else None
    if isinstance(store, FsspecStore):
        links = split_links(store.url)
        folder = FsspecStore(links.folder, links.folder)
        return StoredFile(folder, links.name) if links.name and folder.exists(links.name) else None
    return None

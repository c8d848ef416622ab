"""Tar files, one or many: read member by member without unpacking."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from finetune.errors import AddressError, nearest
from finetune.progress import track
from finetune.stores.remote import list_url, open_url, read_url, url_is_file
from finetune.stores.store import File, Folder, Found, is_hidden, is_url, is_visible, split_links

# Members that describe the photo of the same name, as WebDataset has them; the first two may say its class.
SAMPLE_TEXTS = (".cls", ".json", ".txt")
LABEL_TEXTS = SAMPLE_TEXTS[:2]
# May lie beside tar files without being photos.
SIDE_FILES = ("", ".txt", ".json", ".idx", ".md", ".csv")


class Member(NamedTuple):
    """Where a member's bytes lie in its tar file."""

    offset: int
    size: int


@dataclass(frozen=True)
class TarStore:
    """Tar files below one folder. Paths begin with the tar file's own: train-000.tar/red/0.jpg.

    root: the folder, or its url; shards: the tar files' paths in it.
    """

    address: str
    root: str
    shards: tuple[str, ...]

    def read(self, path: str) -> bytes:
        shard, member = self._locate(path)
        if member is None:
            raise OSError(errno.ENOENT, "no such file", path)
        span = (member.offset, member.offset + member.size)
        if is_url(self.root):
            raw = read_url(self.root, shard, span)
        else:
            with Path(self.root, shard).open("rb") as file:
                file.seek(member.offset)
                raw = file.read(member.size)
        if len(raw) < member.size:
            raise OSError(errno.EIO, f"{shard} ends before the file does", path)
        return raw

    def exists(self, path: str) -> bool:
        try:
            return self._locate(path)[1] is not None
        except FileNotFoundError:
            return False

    def walk(self) -> Iterator[Found]:
        """Yield every member; raises AddressError where a tar file cannot be read to its end."""
        return (found for found, _ in self.walk_with_texts())

    def walk_with_texts(self) -> Iterator[tuple[Found, bytes | None]]:
        """Yield every member, with the bytes of `LABEL_TEXTS`; each tar file is gone through once."""
        for shard in track(self.shards, "listing tar files", total=len(self.shards), unit="files"):
            # a name that was written again replaces the former
            members = {found.path: (found, text, member) for found, text, member in _members(self.root, shard)}
            _indexes[self.root, shard, _state(self.root, shard)] = {
                path: member for path, (_, _, member) in members.items() if member
            }
            for found, text, _ in members.values():
                yield _below(shard, found), text

    def read_beside(self, name: str) -> bytes | None:
        """Return a file that lies beside the tar files, None where there is none."""
        if is_url(self.root):
            return read_url(self.root, name) if url_is_file(self.root, name) else None
        path = Path(self.root, name)
        return path.read_bytes() if path.is_file() else None

    def _locate(self, path: str) -> tuple[str, Member | None]:
        shard, inside = split_member(path)
        if shard not in self.shards:
            return shard, None
        key = self.root, shard, _state(self.root, shard)
        if key not in _indexes:
            _indexes[key] = {found.path: member for found, _, member in _members(self.root, shard) if member}
        return shard, _indexes[key].get(inside)


# Plain numbers, so that a fork may share them; a process that was started afresh makes its own.
_indexes: dict[tuple[str, str, tuple[int, ...]], dict[str, Member]] = {}


def split_member(path: str) -> tuple[str, str]:
    """Return a member's tar file and its path in there."""
    shard, _, inside = path.partition(".tar/")
    return f"{shard}.tar", inside


def name_shards(address: str) -> TarStore:
    """Return the tar file at an address, or those that a pattern with braces stands for."""
    head, path, tail = split_links(address)
    paths = _expand_braces(path)
    common = path.partition("{")[0] if len(paths) > 1 else path
    folder = common.rpartition("/")[0]
    return TarStore(address, f"{head}{folder}{tail}", tuple(shard.removeprefix(f"{folder}/") for shard in paths))


def find_shards(address: str) -> TarStore | None:
    """Return the tar files in a folder, or in the folders of that; None if photos or deeper folders lie there too."""
    head, path, tail = split_links(address)
    shards, folders = _only_shards(address)
    for folder in folders:
        below, deeper = _only_shards(f"{head}{path.rstrip('/')}/{folder}{tail}")
        if not below or deeper:
            return None
        shards += [f"{folder}/{name}" for name in below]
    return TarStore(address, address, tuple(sorted(shards))) if shards else None


def _only_shards(address: str) -> tuple[list[str], list[str]]:
    """Return the tar files and the folders directly in a folder; nothing if there are other files."""
    shards: list[str] = []
    folders: list[str] = []
    try:
        for found in _list(address):
            if is_hidden(found.path):
                continue
            if isinstance(found, Folder):
                folders.append(found.path)
            elif found.path.endswith(".tar"):
                shards.append(found.path)
            elif PurePosixPath(found.path).suffix not in SIDE_FILES:
                return [], []
    except (OSError, AddressError):
        return [], []  # whoever reads it will say what is wrong
    return shards, folders


def _list(address: str) -> Iterator[File | Folder]:
    """Yield what lies directly in a folder, by name."""
    if is_url(address):
        yield from list_url(address)
        return
    with os.scandir(address) as entries:
        for entry in entries:
            yield Folder(entry.name) if entry.is_dir() else File(entry.name, 0, 0)


def _names_in(address: str) -> list[str]:
    try:
        return [found.path for found in _list(address)]
    except (OSError, AddressError):
        return []


def _expand_braces(pattern: str) -> list[str]:
    """Return what a shell makes of {000..009} and {a,b}."""
    group = re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    if not group:
        return [pattern]
    before, after = pattern[: group.start()], pattern[group.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", group[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = group[1].split(",")
    return [whole for choice in choices for whole in _expand_braces(f"{before}{choice}{after}")]


def _members(root: str, shard: str) -> Iterator[tuple[File | Folder, bytes | None, Member | None]]:
    """Yield each visible member, its text if it describes a photo, and where its bytes lie if it has any."""
    known: dict[str, tuple[File, Member]] = {}
    try:
        with _open(root, shard) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                path = posixpath.normpath(info.name).lstrip("/")
                if not is_visible(path):
                    continue
                if info.isdir():
                    yield Folder(path), None, None
                    continue
                file, member = _describe(info, path, known)
                if member:
                    known[path] = file, member
                yield file, _text(tar, info), member
            raw.seek(tar.offset)
            # after a header that makes no sense tarfile stops as if the file ended there
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("bad header")
    except FileNotFoundError:
        raise AddressError(f"{root}/{shard}: no such file{nearest(shard, _names_in(root))}") from None
    except (tarfile.TarError, EOFError) as error:
        raise AddressError(f"{root}/{shard} is no whole tar file ({error}); copy it again") from None


def _open(root: str, shard: str) -> IO[bytes]:
    if not is_url(root):
        return Path(root, shard).open("rb")
    system, folder = open_url(root, root)
    opened: IO[bytes] = system.open("/".join(filter(None, (folder, shard))), "rb")
    return opened


def _state(root: str, shard: str) -> tuple[int, ...]:
    """Tell one state of a local tar file from another."""
    if is_url(root):
        return ()
    status = Path(root, shard).stat()
    return status.st_mtime_ns, status.st_size


def _describe(info: tarfile.TarInfo, path: str, known: dict[str, tuple[File, Member]]) -> tuple[File, Member | None]:
    changed_ns = int(info.mtime * 1_000_000_000)
    if info.isreg() and not info.issparse():
        return File(path, info.size, changed_ns), Member(info.offset_data, info.size)
    if info.issym() or info.islnk():
        folder = posixpath.dirname(path) if info.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, info.linkname)).lstrip("/")
        if target in known:
            file, member = known[target]
            return File(path, file.size, file.mtime_ns), member
        return File(path, 0, 0, "link to nothing"), None
    return File(path, 0, 0, "not a regular file"), None


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    if not info.isreg() or not info.name.endswith(LABEL_TEXTS):
        return None
    stream = tar.extractfile(info)
    return stream.read() if stream else None


def _below(shard: str, found: File | Folder) -> File | Folder:
    path = f"{shard}/{found.path}"
    return Folder(path) if isinstance(found, Folder) else File(path, found.size, found.mtime_ns, found.problem)

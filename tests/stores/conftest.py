"""The same files in every kind of place."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import pytest

Files = Mapping[str, bytes]
# Large and unlike enough that a read at the wrong place shows.
FILES = {
    f"{label}/{number:03}.bin": f"{label}{number}|".encode() * (200 + 37 * number)
    for label in "ab"
    for number in range(40)
}


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def tar_bytes(files: Files) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_memory(address: str, files: Files) -> str:
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"{address}/{name}", content)
    return address


def in_folder(tmp_path: Path) -> str:
    return str(write_folder(tmp_path / "place", FILES))


def in_zip(tmp_path: Path) -> str:
    return str(write_zip(tmp_path / "place.zip", FILES))


def in_zip_by_url(tmp_path: Path) -> str:
    return f"zip://*::{write_zip(tmp_path / 'place.zip', FILES)}"


def in_folder_of_zip(tmp_path: Path) -> str:
    return (
        f"zip://below/here::{write_zip(tmp_path / 'place.zip', {f'below/here/{name}': FILES[name] for name in FILES})}"
    )


def in_memory(tmp_path: Path) -> str:
    return write_memory(f"memory://{tmp_path.name}/place", FILES)


def in_zip_in_memory(tmp_path: Path) -> str:
    packed = write_zip(tmp_path / "packed.zip", FILES).read_bytes()
    write_memory(f"memory://{tmp_path.name}", {"place.zip": packed})
    return f"memory://{tmp_path.name}/place.zip"


def in_tar(tmp_path: Path) -> str:
    return str(write_tar(tmp_path / "place.tar", FILES))


def in_tar_in_memory(tmp_path: Path) -> str:
    write_memory(f"memory://{tmp_path.name}", {"place.tar": tar_bytes(FILES)})
    return f"memory://{tmp_path.name}/place.tar"


PLACES: dict[str, Callable[[Path], str]] = {
    place.__name__: place
    for place in (
        in_folder,
        in_zip,
        in_zip_by_url,
        in_folder_of_zip,
        in_memory,
        in_zip_in_memory,
        in_tar,
        in_tar_in_memory,
    )
}


@pytest.fixture(params=PLACES)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of `FILES`."""
    return PLACES[request.param](tmp_path)


@pytest.fixture(params=["in_folder", "in_zip", "in_tar"])
def local_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address of `FILES` that another process can read."""
    return PLACES[request.param](tmp_path)

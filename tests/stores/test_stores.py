"""What every store does alike."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from finetune.errors import AddressError
from finetune.stores import File, Folder, FolderStore, StoredFile, TableStore, TarStore, find_file, open_store
from tests.conftest import run_python
from tests.stores.conftest import FILES, PLACES, write_folder, write_memory, write_tar, write_zip


def files_of(address: str) -> dict[str, File]:
    """Return every file by its path, that of a tar file's members without the tar file."""
    store = open_store(address)
    assert not isinstance(store, TableStore)
    found = [item for item in store.walk() if isinstance(item, File)]
    return {item.path.partition(".tar/")[2] or item.path: item for item in found}


def test_walks_every_file(address: str) -> None:
    found = files_of(address)
    assert set(found) == set(FILES)
    for path, file in found.items():
        assert (file.size, file.problem) == (len(FILES[path]), "")
        assert file.mtime_ns > 1_000_000_000 * 10**9
    assert open_store(address).address == address


def test_walks_the_folders(address: str) -> None:
    store = open_store(address)
    if isinstance(store, TarStore):
        pytest.skip("these tar files have no entries of folders")
    assert not isinstance(store, TableStore)
    assert {found.path for found in store.walk() if isinstance(found, Folder)} == {"a", "b"}


def test_reads_every_file(address: str) -> None:
    store = open_store(address)
    for path, file in files_of(address).items():
        assert store.read(file.path) == FILES[path]
        assert StoredFile(store, file.path).read_bytes() == FILES[path]


def test_tells_what_is_there(address: str) -> None:
    store = open_store(address)
    path = files_of(address)["a/007.bin"].path
    assert store.exists(path)
    assert not store.exists(path.replace("007", "700"))
    assert not store.exists(path.removesuffix("/007.bin"))


def test_a_file_that_is_not_there_is_an_os_error_with_words(address: str) -> None:
    path = files_of(address)["a/007.bin"].path.replace("007", "700")
    with pytest.raises(FileNotFoundError) as caught:
        open_store(address).read(path)
    assert caught.value.strerror
    assert caught.value.strerror.lower().startswith("no such file")


def test_a_store_is_a_value(address: str) -> None:
    store = open_store(address)
    store.exists("a/000.bin")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert hash(again) == hash(store)
    assert len(pickle.dumps(store)) < 2000


def test_threads_read_at_once(address: str) -> None:
    store = open_store(address)
    paths = {file.path: FILES[path] for path, file in files_of(address).items()}
    asked = random.Random(0).choices(list(paths), k=1000)
    with ThreadPoolExecutor(8) as pool:
        for path, content in zip(asked, pool.map(store.read, asked), strict=True):
            assert content == paths[path]


class Digests(Dataset[str]):
    def __init__(self, files: list[StoredFile]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> str:
        return sha256(self.files[number].read_bytes()).hexdigest()


def test_forked_workers_read_what_the_parent_has_opened(local_address: str) -> None:
    store = open_store(local_address)
    paths = {file.path: sha256(FILES[path]).hexdigest() for path, file in files_of(local_address).items()}
    asked = random.Random(0).choices(list(paths), k=600)
    store.read(asked[0])
    loader = DataLoader(
        Digests([StoredFile(store, path) for path in asked]), 10, num_workers=2, multiprocessing_context="fork"
    )
    batches = iter(loader)
    # the parent goes on reading beside them
    read = [sha256(store.read(path)).hexdigest() for path in asked]
    assert [digest for batch in batches for digest in batch] == read == [paths[path] for path in asked]


def digest_of(file: StoredFile) -> str:
    return sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("place", ["in_zip", "in_tar"])
def test_a_fresh_process_reads_too(place: str, tmp_path: Path) -> None:
    address = PLACES[place](tmp_path)
    store = open_store(address)
    files = files_of(address)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        digests = list(pool.map(digest_of, [StoredFile(store, file.path) for file in files.values()]))
    assert digests == [sha256(FILES[path]).hexdigest() for path in files]


def test_an_archive_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    for write, name in ((write_zip, "x.zip"), (write_tar, "x.tar")):
        address = str(write(tmp_path / name, {"a/1": b"before", "a/2": b"other"}))
        path = files_of(address)["a/1"].path
        assert open_store(address).read(path) == b"before"
        write(tmp_path / name, {"a/0": b"something that moves the rest", "a/1": b"after"})
        assert open_store(address).read(path) == b"after"
        assert set(files_of(address)) == {"a/0", "a/1"}


def test_what_systems_leave_behind_is_passed_over(tmp_path: Path) -> None:
    litter = {"a/.DS_Store": b"x", "a/Thumbs.db": b"x", "__MACOSX/a/._1": b"x", ".git/a/1": b"x", "a/.x/1": b"x"}
    files = {"a/1": b"1", **litter}
    places = [
        str(write_folder(tmp_path / "folder", files)),
        str(write_zip(tmp_path / "x.zip", files)),
        str(write_tar(tmp_path / "x.tar", files)),
        write_memory(f"memory://{tmp_path.name}/litter", files),
    ]
    for address in places:
        assert set(files_of(address)) == {"a/1"}


# Which store


def test_a_folder_is_a_folder_whatever_its_name(tmp_path: Path) -> None:
    for name in ("photos", "old.zip", "old.csv", "old.tar"):
        (tmp_path / name).mkdir()
        assert open_store(str(tmp_path / name)) == FolderStore(str(tmp_path / name))


def test_file_urls_are_folders(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}") == FolderStore(str(tmp_path))


@pytest.mark.parametrize("name", ["photos.csv", "PHOTOS.CSV", "photos.tsv", "photos.parquet"])
def test_a_table_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    for address in (str(tmp_path / name), f"memory://there/{name}", f"zip://{name}::there.zip"):
        assert open_store(address) == TableStore(address)


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz", "photos.tar.zst"])
def test_a_compressed_tar_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=r"is a compressed tar file, which can only be read from its start; unpack"):
        open_store(str(tmp_path / name))


def test_reading_tar_files_through_fsspec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=r"for each photo; give /there/x.tar$"):
        open_store("tar://red::/there/x.tar")


# The one file at an address


def test_one_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {"red/0.jpg": b"local"})
    packed = write_zip(tmp_path / "photos.zip", {"red/0.jpg": b"packed"})
    memory = write_memory(f"memory://{tmp_path.name}/photos", {"red/0.jpg": b"memory"})
    for address, content in (
        (str(tmp_path / "photos" / "red" / "0.jpg"), b"local"),
        (f"zip://red/0.jpg::{packed}", b"packed"),
        (f"{memory}/red/0.jpg", b"memory"),
    ):
        file = find_file(address)
        assert file
        assert file.read_bytes() == content
    for address in (str(tmp_path / "photos"), str(packed), f"zip://red::{packed}", memory, str(tmp_path / "gone.jpg")):
        assert find_file(address) is None


# What cannot be opened


def walk(address: str) -> None:
    store = open_store(address)
    assert not isinstance(store, TableStore)
    for _ in store.walk():
        pass


def test_what_is_missing_names_what_is_like_it(tmp_path: Path) -> None:
    write_zip(tmp_path / "photos.zip", {"red/0.jpg": b"x"})
    write_tar(tmp_path / "photos.tar", {"red/0.jpg": b"x"})
    write_memory(f"memory://{tmp_path.name}/photos", {"red/0.jpg": b"x"})
    (tmp_path / "folder").mkdir()
    for address, message in (
        (f"{tmp_path}/photso.zip", "no such file; did you mean 'photos.zip'?"),
        (f"zip://red::{tmp_path}/photso.zip", "no such file; did you mean 'photos.zip'?"),
        (f"{tmp_path}/photso.tar", "no such file; did you mean 'photos.tar'?"),
        (f"{tmp_path}/foldr", "no such folder; did you mean 'folder'?"),
        (f"memory://{tmp_path.name}/photso", "no such folder; did you mean 'photos'?"),
        (f"zip://rde::{tmp_path}/photos.zip", "no such folder; did you mean 'red'?"),
    ):
        with pytest.raises(AddressError) as caught:
            walk(address)
        assert str(caught.value) == f"{address}: {message}"


def test_a_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    address = write_memory(f"memory://{tmp_path.name}", {"x.jpg": b"x"}) + "/x.jpg"
    with pytest.raises(AddressError, match=r"x\.jpg is a file; give the folder that holds the class folders"):
        walk(address)


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"these are no archives")
    (tmp_path / "x.tar").write_bytes(b"these are no archives")
    with pytest.raises(AddressError, match=r"x\.zip cannot be opened: File is not a zip file"):
        walk(str(tmp_path / "x.zip"))
    with pytest.raises(AddressError, match=r"x\.tar is no whole tar file .*; copy it again"):
        walk(str(tmp_path / "x.tar"))


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(AddressError, match=r"^memry://photos cannot be opened: .*; did you mean 'memory'\?$"):
        walk("memry://photos")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(AddressError, match=r"^s3://bucket/photos needs another package: Install s3fs to access S3$"):
        walk("s3://bucket/photos")


def test_damage_inside_a_zip_is_the_photos_problem(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "x.zip", {"red/0.bin": random.Random(0).randbytes(5000)})
    raw = bytearray(packed.read_bytes())
    raw[2000:2100] = bytes(100)
    packed.write_bytes(raw)
    with pytest.raises(OSError, match=r"CRC|decompress") as caught:
        open_store(str(packed)).read("red/0.bin")
    assert caught.value.strerror


def test_opening_stores_does_not_import_fsspec() -> None:
    """Every command imports the stores; few need what takes a tenth of a second."""
    code = "import sys, finetune.stores as s; s.open_store('/nowhere').exists('x'); print('fsspec' in sys.modules)"
    assert run_python(code) == "False\n"

"""A bundle on its way into a model repository: filled out of sight, then there whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from finetune.bundle import INPUT, OUTPUT, Bundle, BundleInfo, ModelCard, versions_of
from finetune.files import make_folder, sha256, write_text
from finetune.triton import labels_file, triton_config

STAGING = ".staging-"


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Yield an empty hidden folder on the repository's disk, to be filled and handed to `publish`.

    It is gone afterwards; what killed exports left there goes too.
    """
    make_folder(repository)
    for left in repository.glob(f"{STAGING}*.lock"):
        with _held(left) as mine:
            if mine:
                shutil.rmtree(left.with_suffix(""), ignore_errors=True)
    lock = repository / f"{STAGING}{uuid4().hex[:8]}.lock"
    with _held(lock):
        folder = lock.with_suffix("")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold a lock, unless another process does, and remove its file."""
    holder = FileLock(lock, timeout=0)
    try:
        holder.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        holder.release()


def publish(staged: Path, repository: Path, info: BundleInfo) -> Bundle:
    """Move a staged version into the repository as the next one; it appears whole, at once.

    info: without its `files` and `seal`, which are made here.
    """
    home = repository / info.model.name
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    info = info.model_copy(update={"files": {name: sha256(staged / name) for name in names}})
    info = info.model_copy(update={"seal": info.expected_seal})
    write_text(staged / "bundle.json", info.as_text)
    if home.is_dir():
        version = staged.replace(home / str(max(versions_of(home), default=0) + 1))
        _describe(home, info.model)
        return Bundle(version, info)
    with staging(repository) as whole:
        staged.replace(whole / "1")
        _describe(whole, info.model)
        return Bundle(whole.replace(home) / "1", info)


def _describe(model: Path, card: ModelCard) -> None:
    config = triton_config(card.name, INPUT, OUTPUT, card.preprocessing.image_size, len(card.labels))
    write_text(model / "labels.txt", labels_file(card.labels))
    write_text(model / "config.pbtxt", config)

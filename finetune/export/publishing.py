"""A bundle on its way into a model repository: filled out of sight, then there whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from finetune.bundle import Bundle, BundleInfo, ModelCard, beside_versions
from finetune.errors import FinetuneError
from finetune.files import make_folder, sha256, write_text

STAGING = ".staging-"
# What moving a folder to where another one is fails with.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


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
    if home.exists() and not home.is_dir():
        raise FinetuneError(f"{home} is a file; give another name= or output=")
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    info = info.model_copy(update={"files": {name: sha256(staged / name) for name in names}})
    info = info.model_copy(update={"seal": info.expected_seal})
    write_text(staged / "bundle.json", info.as_text)
    if not home.is_dir():
        with staging(repository) as whole:
            staged.replace(whole / "1")
            describe_versions(whole, info.model)
            try:
                return Bundle(whole.replace(home) / "1", info)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                (whole / "1").replace(staged)  # another export of this name was faster
    version = _next_version(staged, home)
    describe_versions(home, info.model)
    return Bundle(version, info)


def _next_version(staged: Path, home: Path) -> Path:
    """Move a version into its model's folder, beside what other exports put there meanwhile."""
    while True:
        # also those without a bundle in them, which another program may have written
        taken = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        try:
            return staged.replace(home / str(max(taken, default=0) + 1))
        except OSError as error:
            if error.errno not in TAKEN:
                raise


def describe_versions(home: Path, card: ModelCard) -> None:
    """Write what Triton reads beside the versions of a model: of the newest one."""
    for name, text in beside_versions(card).items():
        if not (home / name).is_file() or (home / name).read_text(encoding="utf-8") != text:
            write_text(home / name, text)

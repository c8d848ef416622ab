"""What lies in a model repository on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from finetune.bundle import bundle_folders, is_hidden, open_bundle, versions_of
from finetune.serving.routes import Target

# The files of a version as the disk knows them: by name, when they were changed, their bytes and their inode.
Signature = tuple[tuple[str, int, int, int], ...]


class Shelf:
    """The models of a repository, or of the folder of one model, under the names that they are served by."""

    def __init__(self, models: Path) -> None:
        """Raises FinetuneError where there is no bundle at all."""
        folders = bundle_folders(models)
        self.models = models
        # a lone model's folder may be a mount point of any name; within a repository the folder's name is the model's
        self._alone = open_bundle(models).name if folders == [models] else None

    def versions(self) -> dict[str, list[int]]:
        """Return the numbers of each model's versions; a model without one is left out."""
        if self._alone is not None:
            found = {self._alone: versions_of(self.models)}
        else:
            found = {folder.name: versions_of(folder) for folder in self._folders()}
        return {name: versions for name, versions in found.items() if versions}

    def folder(self, target: Target) -> Path:
        """Return a version's folder, whether or not it is there."""
        model = self.models if self._alone is not None else self.models / target.model
        return model / str(target.version)

    def signature(self, target: Target) -> Signature:
        """Return what changes with any file of a version; nothing of what is in them is read."""
        return tuple(sorted(_walk(self.folder(target), "")))

    def missing(self, targets: Iterable[Target]) -> dict[Target, str]:
        """Return those of which no version is there to be read any more, each with the reason."""
        found = {}
        for target in targets:
            try:
                # a repository that cannot be listed may be a volume that is away: no version is found in it
                os.scandir(self.models).close()
                (self.folder(target) / "bundle.json").stat()
            except OSError as error:
                found[target] = f"{error.filename}: {error.strerror}"
        return found

    def _folders(self) -> list[Path]:
        try:
            return sorted(path for path in self.models.iterdir() if path.is_dir() and not is_hidden(path))
        except OSError:
            # a volume that is away for now; what is open goes on, and `missing` says why it cannot be read
            return []


def _walk(folder: Path, prefix: str) -> list[tuple[str, int, int, int]]:
    found: list[tuple[str, int, int, int]] = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return found
    for entry in entries:
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _walk(folder / entry.name, f"{name}/")
            continue
        try:
            status = entry.stat()
        except OSError:
            continue
        found.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
    return found

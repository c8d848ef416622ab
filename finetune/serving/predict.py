"""`finetune predict`: a photo, a folder or an archive of photos to a CSV file."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from finetune.bundle import open_bundle
from finetune.config import PredictConfig
from finetune.errors import AddressError, FinetuneError, ImageError
from finetune.files import replacing
from finetune.progress import track
from finetune.serving.predictor import Predictor, open_predictor, require_room
from finetune.stores import (
    SAMPLE_TEXTS,
    File,
    Folder,
    FolderStore,
    StoredFile,
    TableStore,
    TarStore,
    find_file,
    nearest_beside,
    open_store,
)

log = logging.getLogger(__name__)

Row = list[str]


def main(config: PredictConfig) -> str:
    """Write one row a file, in path order; a file that cannot be read has its reason in the column `error`."""
    bundle = open_bundle(config.model)
    files = _list_files(config.input, config.output)
    card = bundle.info.model
    batch = None if config.batch_size == "auto" else config.batch_size
    require_room(config.device, batch, "batch_size")
    predictor = open_predictor(bundle, config.device, engine_cache=config.engine_cache, batch=batch)
    header = ["path", "label", "probability", "error", *(card.labels if config.probabilities else ())]
    counts: Counter[str] = Counter()
    with replacing(config.output) as beside, _csv(beside) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        rows = _rows(predictor, files, config.probabilities)
        for path, row in track(rows, "predicting", total=len(files)):
            writer.writerow([path, *row])
            counts[row[0]] += 1
    failed = counts.pop("", 0)
    lines = [f"{len(files) - failed} photos predicted with {bundle.name} version {bundle.version}: {config.output}"]
    lines += [f"  {count:>6}  {label}" for label, count in counts.most_common()]
    if failed:
        lines.append(f"  {failed:>6}  could not be read; the column `error` says why")
    return "\n".join(lines)


def _rows(predictor: Predictor, files: dict[str, StoredFile | str], all_classes: bool) -> Iterator[tuple[str, Row]]:
    answers = predictor.answers(file for file in files.values() if not isinstance(file, str))
    for path, file in files.items():
        answer = file if isinstance(file, str) else next(answers)
        if isinstance(answer, np.ndarray):
            best = predictor.explain(answer, top=1)
            columns = [f"{value:.6f}" for value in answer] if all_classes else []
            yield path, [best.label, f"{best.probability:.6f}", "", *columns]
        else:
            yield path, ["", "", _reason(answer), *([""] * len(predictor.labels) if all_classes else [])]


def _reason(why: str | ImageError | OSError) -> str:
    match why:
        case ImageError():
            return why.reason
        case OSError():
            return f"cannot be read: {why.strerror}"
        case _:
            return why


def _csv(path: Path) -> TextIO:
    # a photo's name may be any bytes on Linux; what is no text is written as escapes
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _list_files(address: str, output: Path) -> dict[str, StoredFile | str]:
    """Return each file by the path to show, in path order, or why it cannot be opened."""
    try:
        if alone := find_file(address):
            return {address: alone}
        files = _walk(address, output)
    except AddressError as error:
        raise FinetuneError(f"input={error}") from None
    if not files:
        raise FinetuneError(f"input={address} holds no files")
    return dict(sorted(files.items()))


def _walk(address: str, output: Path) -> dict[str, StoredFile | str]:
    store = open_store(address)
    if isinstance(store, TableStore):
        raise AddressError(f"{address} is a table; give the folder or archive of the photos")
    if isinstance(store, FolderStore) and not Path(address).exists():
        raise AddressError(f"{address}: no such file or folder{nearest_beside(Path(address))}")
    files: dict[str, StoredFile | str] = {}
    for found in store.walk():
        if isinstance(found, File):
            texts = SAMPLE_TEXTS if isinstance(store, TarStore) else ()
            if not found.path.endswith(texts) and not _is_output(store.address, found.path, output):
                files[found.path] = found.refusal or StoredFile(store, found.path)
        elif not isinstance(found, Folder) and found.kind != "link_outside":
            log.warning("passed over: %s %s", found.path, found.message)
    return files


def _is_output(address: str, path: str, output: Path) -> bool:
    """Whether a file is what a former run of this command left."""
    return path.endswith(output.name) and Path(address, path).absolute() == output.absolute()

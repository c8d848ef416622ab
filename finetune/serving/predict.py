"""`finetune predict`: a photo or a folder of photos to a CSV file."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import open_bundle
from finetune.config import PredictConfig
from finetune.errors import FinetuneError, ImageError, nearest
from finetune.files import replacing
from finetune.parallel import ordered_map
from finetune.preprocess import Pixels
from finetune.progress import track
from finetune.serving.predictor import Predictor

Row = list[str]
Probabilities = NDArray[np.float32]
Opened = tuple[Path, Pixels | str]


def main(config: PredictConfig) -> str:
    """Write one row a file, in path order; a file that cannot be read has its reason in the column `error`."""
    bundle = open_bundle(config.model)
    paths = _list_files(config.input)
    card = bundle.info.model
    predictor = Predictor(bundle.model, card.labels, card.preprocessing, config.device)
    header = ["path", "label", "probability", "error", *(card.labels if config.probabilities else ())]
    counts: Counter[str] = Counter()
    with replacing(config.output) as beside, _csv(beside) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        rows = _rows(predictor, paths, config.batch_size, config.probabilities)
        for path, row in track(rows, "predicting", total=len(paths)):
            writer.writerow([_shown(path, config.input), *row])
            counts[row[0]] += 1
    failed = counts.pop("", 0)
    lines = [f"{len(paths) - failed} photos predicted with {bundle.name} version {bundle.version}: {config.output}"]
    lines += [f"  {count:>6}  {label}" for label, count in counts.most_common()]
    if failed:
        lines.append(f"  {failed:>6}  could not be read; the column `error` says why")
    return "\n".join(lines)


def _rows(predictor: Predictor, paths: list[Path], batch_size: int, all_classes: bool) -> Iterator[tuple[Path, Row]]:
    def opened(path: Path) -> Opened:
        try:
            return path, predictor.load(path)
        except ImageError as error:
            return path, str(error)
        except OSError as error:
            return path, f"cannot be read: {error.strerror}"

    results = ordered_map(opened, paths)
    while batch := list(islice(results, batch_size)):
        images = [pixels for _, pixels in batch if not isinstance(pixels, str)]
        answers: Iterator[Probabilities] = iter(predictor.run(np.stack(images))) if images else iter(())
        for path, pixels in batch:
            if isinstance(pixels, str):
                yield path, ["", "", pixels, *([""] * len(predictor.labels) if all_classes else [])]
                continue
            probabilities = next(answers)
            best = predictor.explain(probabilities, top=1)
            columns = [f"{value:.6f}" for value in probabilities] if all_classes else []
            yield path, [best.label, f"{best.probability:.6f}", "", *columns]


def _csv(path: Path) -> TextIO:
    # a photo's name may be any bytes on Linux; what is no text is written as escapes
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _list_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        beside = [path.name for path in source.parent.iterdir()] if source.parent.is_dir() else []
        raise FinetuneError(f"input={source}: no such file or folder{nearest(source.name, beside)}")
    found = []
    for parent, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in sorted(files) if not name.startswith(".") and name != "Thumbs.db"]
    if not found:
        raise FinetuneError(f"input={source} holds no files")
    return found


def _shown(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix() if source.is_dir() else path.as_posix()

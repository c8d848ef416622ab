"""Does the exported file answer as the trained model does, photo by photo, through the code that serves?"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import Parity
from finetune.cores import at_work
from finetune.data.manifest import Photo
from finetune.errors import ParityError
from finetune.evaluation.scoring import answer_with_torch
from finetune.export.source import Source
from finetune.files import replacing
from finetune.models.classifier import Scorer
from finetune.parallel import ordered_map
from finetune.preprocess import Preprocessing, Readable
from finetune.progress import track
from finetune.serving.predictor import Predictor

log = logging.getLogger(__name__)

# One photo, an even and an odd batch: a batch dimension that the exporter froze or mistook shows up in one of them.
BATCH_SIZES = (1, 2, 7)

Probabilities = NDArray[np.float32]


def compare(
    trained: Probabilities, predictor: Predictor, source: Source, photos: Sequence[Photo], limit: float | None
) -> tuple[Parity, Probabilities]:
    """Compare what an exported file answers to real photos with what the trained network answered.

    trained: (N, classes) of the photos, in order. Returns the comparison and the file's own (N, classes).
    """
    rows = onnx_probabilities(predictor, source.manifest.files(photos))
    gaps = np.abs(trained[np.arange(len(rows)) % len(photos)] - rows)
    worst = int(gaps.max(axis=1).argmax())
    by_onnx = rows[: len(photos)]
    targets = np.asarray(source.targets(photos))
    parity = Parity(
        photos=len(photos),
        batch_sizes=BATCH_SIZES,
        provider=predictor.session.provider,
        limit=limit,
        max_difference=float(gaps[worst].max()),
        mean_difference=float(gaps.mean()),
        same_answer=float((trained.argmax(1) == by_onnx.argmax(1)).mean()),
        worst_photo=photos[worst % len(photos)].path,
        torch_accuracy=float((trained.argmax(1) == targets).mean()),
        onnx_accuracy=float((by_onnx.argmax(1) == targets).mean()),
    )
    return parity, by_onnx


def require_agreement(parity: Parity, consequence: str) -> None:
    """Raise ParityError, with what follows from it, where a probability differs by more than the limit."""
    limit = math.inf if parity.limit is None else parity.limit
    if not parity.max_difference <= limit:  # not `>`: a NaN is a failure too, whatever the precision
        raise ParityError(
            f"the ONNX model differs from the trained one by {parity.max_difference:.2g} on {parity.worst_photo}, more "
            f"than parity_limit={limit:g}, on {parity.provider}; {consequence}"
        )


def torch_probabilities(network: Scorer, preprocessing: Preprocessing, files: Sequence[Readable]) -> Probabilities:
    """Return (N, classes) of the trained network, as it was trained."""
    return answer_with_torch(network, preprocessing, files)


def onnx_probabilities(predictor: Predictor, files: Sequence[Readable]) -> Probabilities:
    """Return (M, classes) of the exported model, M >= N, in batches of each size in turn.

    Row k belongs to photo k modulo N: the last batches start over, so that every size is run whole.
    """

    def answer(batch: Sequence[int]) -> Probabilities:
        # decoding takes a core as well: else a run beside it would take all of them
        with at_work():
            return predictor.run(np.stack([predictor.load(files[number]) for number in batch]))

    batches = list(_batches(len(files)))
    answers = track(ordered_map(answer, batches), "comparing the exported model", len(batches), "batches")
    return np.concatenate(list(answers))


def _batches(photos: int) -> Iterator[list[int]]:
    position = 0
    for number, size in enumerate(cycle(BATCH_SIZES)):
        if position >= photos and number >= len(BATCH_SIZES):
            return
        yield [(position + k) % photos for k in range(size)]
        position += size


def save_table(path: Path, source: Source, trained: Probabilities, exported: Probabilities) -> bool:
    """Write one row a compared photo: its label and what each of the two answered; whether it could be written."""
    labels = source.card.labels
    try:
        with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "torch", "torch_probability", "onnx", "onnx_probability", "difference"])
            for photo, torch_row, onnx_row in zip(source.compared, trained, exported, strict=True):
                answers = [(labels[row.argmax()], f"{row.max():.7f}") for row in (torch_row, onnx_row)]
                difference = f"{np.abs(torch_row - onnx_row).max():.2g}"
                writer.writerow([photo.path, photo.label, *answers[0], *answers[1], difference])
    except OSError as error:
        # a run folder may be read-only, and the bundle does not need the table
        log.warning("%s cannot be written: %s", path, error.strerror)
        return False
    return True

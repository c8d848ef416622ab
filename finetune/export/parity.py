"""Does the exported file answer as the trained model does, photo by photo, through the code that serves?"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.bundle import Parity
from finetune.data.manifest import Manifest, Photo
from finetune.errors import ParityError
from finetune.evaluation.scoring import score_with_torch
from finetune.files import replacing
from finetune.models.classifier import Classifier
from finetune.parallel import ordered_map
from finetune.preprocess import Preprocessing, Readable
from finetune.progress import track
from finetune.serving.predictor import Predictor

# One photo, an even and an odd batch: a batch dimension that the exporter froze or mistook shows up in one of them.
BATCH_SIZES = (1, 2, 7)

Probabilities = NDArray[np.float32]


def compare(
    classifier: Classifier, predictor: Predictor, manifest: Manifest, photos: Sequence[Photo], limit: float, table: Path
) -> Parity:
    """Compare probabilities over real photos and write every photo's answers to `table`.

    Raises ParityError where a probability differs by more than `limit`.
    """
    files = manifest.files(photos)
    by_torch = torch_probabilities(classifier, predictor.preprocessing, files)
    rows = onnx_probabilities(predictor, files)
    gaps = np.abs(by_torch[np.arange(len(rows)) % len(photos)] - rows)
    worst = int(gaps.max(axis=1).argmax())
    by_onnx = rows[: len(photos)]
    targets = np.asarray(manifest.targets(tuple(photos)))
    parity = Parity(
        photos=len(photos),
        batch_sizes=BATCH_SIZES,
        provider=predictor.session.provider,
        limit=limit,
        max_difference=float(gaps[worst].max()),
        mean_difference=float(gaps.mean()),
        same_answer=float((by_torch.argmax(1) == by_onnx.argmax(1)).mean()),
        worst_photo=photos[worst % len(photos)].path,
        torch_accuracy=float((by_torch.argmax(1) == targets).mean()),
        onnx_accuracy=float((by_onnx.argmax(1) == targets).mean()),
    )
    _save(table, manifest, photos, by_torch, by_onnx)
    if not parity.max_difference <= limit:  # not `>`: a NaN is a failure too
        raise ParityError(
            f"the ONNX model differs from the trained one by {parity.max_difference:.2g} on {parity.worst_photo}, more "
            f"than parity_limit={limit:g}; no bundle was written ({table} has every photo)"
        )
    return parity


def torch_probabilities(
    classifier: Classifier, preprocessing: Preprocessing, files: Sequence[Readable]
) -> Probabilities:
    """Return (N, classes) of the trained model, as it was trained."""
    logits = score_with_torch(classifier, preprocessing, files)
    probabilities: Probabilities = torch.softmax(logits / classifier.temperature.cpu(), dim=1).numpy()
    return probabilities


def onnx_probabilities(predictor: Predictor, files: Sequence[Readable]) -> Probabilities:
    """Return (M, classes) of the exported model, M >= N, in batches of each size in turn.

    Row k belongs to photo k modulo N: the last batches start over, so that every size is run whole.
    """
    batches = list(_batches(len(files)))
    ordered = [files[number] for batch in batches for number in batch]
    pixels = track(ordered_map(predictor.load, ordered), "comparing the exported model", total=len(ordered))
    return np.concatenate([predictor.run(np.stack(list(islice(pixels, len(batch))))) for batch in batches])


def _batches(photos: int) -> Iterator[list[int]]:
    position = 0
    for number, size in enumerate(cycle(BATCH_SIZES)):
        if position >= photos and number >= len(BATCH_SIZES):
            return
        yield [(position + k) % photos for k in range(size)]
        position += size


def _save(
    path: Path, manifest: Manifest, photos: Sequence[Photo], by_torch: Probabilities, by_onnx: Probabilities
) -> None:
    """Write one row a photo: its label and what each of the two answered."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "torch", "torch_probability", "onnx", "onnx_probability", "difference"])
        for photo, torch_row, onnx_row in zip(photos, by_torch, by_onnx, strict=True):
            answers = [(manifest.classes[row.argmax()], f"{row.max():.7f}") for row in (torch_row, onnx_row)]
            difference = f"{np.abs(torch_row - onnx_row).max():.2g}"
            writer.writerow([photo.path, photo.label, *answers[0], *answers[1], difference])

"""What an evaluation leaves behind: evaluation.json first, then tables and pictures of the same figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.calibration import BINS
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import Proportion, Scores
from finetune.evaluation.pictures import draw_confusion, draw_reliability
from finetune.evaluation.subject import Chosen, Subject
from finetune.files import replacing, write_json
from finetune.preprocess import Pixels
from finetune.run import versions

RECORD = "evaluation.json"


def identify(subject: Subject, chosen: Chosen) -> dict[str, dict[str, str | None]]:
    """Return what tells one evaluation from another: the same model on the same photos replaces the former."""
    return {
        "model": {"kind": subject.kind, "path": str(subject.place.absolute())},
        "photos": {"root": chosen.manifest.store.address, "split": chosen.split},
    }


def require_free(output: Path, identity: dict[str, dict[str, str | None]]) -> dict[str, Any] | None:
    """Return the former evaluation of the same kind in `output`, if any.

    Raises FinetuneError where the folder holds anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        former: dict[str, Any] = json.loads((output / RECORD).read_text(encoding="utf-8"))
        there = {part: {key: former[part][key] for key in identity[part]} for part in identity}
    except (OSError, ValueError, TypeError, KeyError):
        raise FinetuneError(f"output={output} exists and holds no evaluation; choose another output=") from None
    if there != identity:
        raise FinetuneError(f"output={output} holds another evaluation, {_in_words(there)}; choose another output=")
    return former


def _in_words(identity: dict[str, dict[str, str | None]]) -> str:
    model, photos = identity["model"], identity["photos"]
    split = f", split {photos['split']}" if photos["split"] else ""
    return f"of the {model['kind']} {model['path']} on {photos['root']}{split}"


def save(output: Path, subject: Subject, chosen: Chosen, scores: Scores, seconds: float) -> None:
    """Write every file but the report."""
    write_json(output / RECORD, as_json(subject, chosen, scores, seconds))
    _save_predictions(output / "predictions.csv", scores)
    rows = ([label, *row] for label, row in zip(scores.classes, scores.confusion.tolist(), strict=True))
    _write_csv(output / "confusion.csv", ["label", *scores.classes], rows)
    _save_picture(output / "confusion.png", draw_confusion(scores.confusion, scores.classes))
    _save_picture(output / "reliability.png", draw_reliability(scores.bins))


def as_json(subject: Subject, chosen: Chosen, scores: Scores, seconds: float) -> dict[str, Any]:
    """Return `evaluation.json`; shares are fractions of 1, with the bounds of their 95 % interval."""
    identity = identify(subject, chosen)
    return {
        "model": {
            **identity["model"],
            "name": subject.name,
            "backbone": subject.backbone,
            "weights_sha256": subject.weights_sha256,
        },
        "photos": {
            **identity["photos"],
            "count": len(scores.photos),
            "skipped": len(chosen.manifest.skipped),
            "seen_in_training": chosen.seen,
            "classes_shown": len(scores.shown),
            "fingerprint": chosen.manifest.fingerprint(),
        },
        "accuracy": _share(scores.top[1]),
        "top_k": {str(k): _share(share) for k, share in scores.top.items()},
        "balanced_accuracy": _share(scores.balanced),
        "macro": scores.macro._asdict(),
        "log_loss": scores.log_loss,
        "calibration_error": scores.calibration_error,
        "reliability": {"bins": BINS, "with_photos": [one._asdict() for one in scores.bins]},
        "by_class": [
            {
                "label": row.label,
                "photos": row.photos,
                "answered": row.answered,
                "precision": _share(row.precision),
                "recall": _share(row.recall),
                "f1": row.f1,
            }
            for row in scores.by_class
        ],
        "seconds": round(seconds, 3),
        "photos_per_second": round(len(scores.photos) / seconds, 2),
        "device": subject.device,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _share(share: Proportion | None) -> dict[str, float] | None:
    return share._asdict() if share else None


def _save_predictions(path: Path, scores: Scores) -> None:
    _write_csv(
        path,
        ["path", "label", "answer", "probability", *scores.classes],
        (
            [photo.path, photo.label, scores.classes[answer], f"{row.max():.6f}", *(f"{p:.6f}" for p in row)]
            for photo, answer, row in zip(scores.photos, scores.answers, scores.probabilities, strict=True)
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _save_picture(path: Path, pixels: Pixels) -> None:
    with replacing(path) as beside:
        Image.fromarray(np.ascontiguousarray(pixels)).save(beside, optimize=True)

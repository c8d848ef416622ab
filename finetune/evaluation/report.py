"""`report.html`: one file a person opens after training or an evaluation; pictures and thumbnails are inside it."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageOps

from finetune.calibration import BINS
from finetune.data.manifest import Manifest
from finetune.errors import ImageError
from finetune.evaluation.metrics import Scores
from finetune.evaluation.pictures import draw_confusion, draw_reliability
from finetune.evaluation.subject import Chosen, Subject
from finetune.files import write_text
from finetune.preprocess import Pixels, Readable, decode
from finetune.run import Result

MOST_MISTAKES = 24
MOST_CONFUSED = 12
THUMBNAIL_PX = 160
# Pictures are drawn at twice the size at which they are shown.
DENSITY = 2


def write_report(
    path: Path, result: Result, manifest: Manifest, scores: Scores | None, metrics: list[dict[str, float | int | str]]
) -> None:
    """Write what training came to. scores: of the test photos, where there are any."""
    title = f"{result.backbone}, freeze={result.freeze}, {result.image_size} px"
    _write(path, title=title, measured="test photos", result=result, metrics=metrics, **_parts(manifest, scores))


def write_evaluation_report(path: Path, subject: Subject, chosen: Chosen, scores: Scores) -> None:
    """Write what an evaluation came to."""
    split = f", split {chosen.split}" if chosen.split else ""
    measured = f"{subject.kind} {subject.place} on {chosen.manifest.store.address}{split}"
    title = f"{subject.name}: {len(scores.photos)} photos of {len(scores.shown)} classes"
    parts = _parts(chosen.manifest, scores)
    _write(path, title=title, measured=measured, result=None, metrics=[], subject=subject, seen=chosen.seen, **parts)


def _write(path: Path, **parts: Any) -> None:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    template = environment.from_string(files("finetune.evaluation").joinpath("report.html.j2").read_text("utf-8"))
    write_text(path, template.render(bins=BINS, **parts))


def _parts(manifest: Manifest, scores: Scores | None) -> dict[str, Any]:
    if scores is None:
        return {"scores": None, "skipped": manifest.skipped}
    return {
        "scores": scores,
        "confusion": _picture(draw_confusion(scores.confusion, scores.classes)),
        "confused": _confused(scores),
        "reliability": _picture(draw_reliability(scores.bins)),
        "mistakes": _mistakes(manifest, scores),
        "skipped": manifest.skipped,
    }


def _confused(scores: Scores) -> list[tuple[str, str, int, int]]:
    """Return the pairs of classes that were confused most: what the photos show, what was answered, how many of all."""
    wrong = scores.confusion.copy()
    wrong[range(len(wrong)), range(len(wrong))] = 0
    # of equal numbers the first class first
    order = (-wrong).ravel().argsort(kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(place), len(wrong)) for place in order if wrong.ravel()[place]]
    return [
        (scores.classes[row], scores.classes[column], int(wrong[row, column]), scores.by_class[row].photos)
        for row, column in pairs
    ]


def _mistakes(manifest: Manifest, scores: Scores) -> list[dict[str, str]]:
    """Return the wrong answers, surest first."""
    answers = scores.answers
    wrong = [number for number, target in enumerate(scores.targets) if answers[number] != target]
    wrong.sort(key=lambda number: -float(scores.probabilities[number, answers[number]]))
    return [
        {
            "path": scores.photos[number].path,
            "label": scores.photos[number].label,
            "answer": scores.classes[answers[number]],
            "probability": f"{100 * float(scores.probabilities[number, answers[number]]):.1f} %",
            "thumbnail": _thumbnail(*manifest.files([scores.photos[number]])),
        }
        for number in wrong[:MOST_MISTAKES]
    ]


def _thumbnail(file: Readable) -> str:
    """Return a data address of a small JPEG; empty where the photo has gone since it was scored."""
    try:
        image = decode(file, wanted_px=THUMBNAIL_PX)
    except (ImageError, OSError):
        return ""
    buffer = io.BytesIO()
    ImageOps.contain(image, (THUMBNAIL_PX, THUMBNAIL_PX)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(pixels: Pixels) -> dict[str, str | int]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    height, width = pixels.shape[:2]
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"address": address, "width": width // DENSITY, "height": height // DENSITY}

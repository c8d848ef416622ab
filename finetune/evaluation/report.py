"""`report.html`: one file a person opens after training."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path

import jinja2
from PIL import ImageOps

from finetune.data.manifest import Manifest
from finetune.errors import ImageError
from finetune.evaluation.metrics import Scores
from finetune.files import write_text
from finetune.preprocess import Readable, decode
from finetune.run import Result

MOST_MISTAKES = 24
THUMBNAIL_PX = 160


def write_report(
    path: Path, result: Result, manifest: Manifest, scores: Scores | None, metrics: list[dict[str, float | int | str]]
) -> None:
    """Write figures, the confusion matrix, and the mistakes the model was surest of; thumbnails are inside the file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("finetune.evaluation").joinpath("report.html.j2").read_text("utf-8"))
    page = template.render(
        result=result,
        scores=scores,
        metrics=metrics,
        mistakes=_mistakes(manifest, scores, result.classes) if scores else [],
        skipped=manifest.skipped,
    )
    write_text(path, page)


def _mistakes(manifest: Manifest, scores: Scores, classes: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the wrong answers, surest first."""
    answers = scores.answers
    wrong = [number for number, target in enumerate(scores.targets) if answers[number] != target]
    wrong.sort(key=lambda number: -float(scores.probabilities[number, answers[number]]))
    return [
        {
            "path": scores.photos[number].path,
            "label": scores.photos[number].label,
            "answer": classes[answers[number]],
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

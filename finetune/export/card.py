"""The model card (Mitchell et al. 2019): a bundle's README.md, from what was measured."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import jinja2

from finetune.bundle import INPUT, OUTPUT, BundleInfo
from finetune.data.manifest import Manifest
from finetune.evaluation.metrics import Proportion, wilson
from finetune.evaluation.record import RECORD
from finetune.run import FinishedRun, Result

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
# Of a class with fewer training photos the card says so.
FEW_PHOTOS = 20


@dataclass(frozen=True)
class Measured:
    """An accuracy on some photos. interval: 95 %, None where it cannot be told; seen: photos of training among them."""

    where: str
    photos: int
    accuracy: float
    interval: Proportion | None
    calibration_error: float | None
    seen: int | None


def model_card(
    info: BundleInfo, result: Result | None, manifest: Manifest | None = None, evaluations: Sequence[Measured] = ()
) -> str:
    """Return README.md in Markdown, to lie beside `model.onnx`; what is not known is left out.

    result: of the run that was exported, None of a checkpoint from elsewhere; manifest: the run's photos, None where
    that file is lost; evaluations: see `recorded_evaluations`.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"percent": _percent, "plain": _plain}
    template = environment.from_string(files("finetune.export").joinpath("card.md.j2").read_text("utf-8"))
    counts = _photos_by_class(manifest) if manifest and result else {}
    return template.render(
        model=info.model,
        parity=info.parity,
        precision=info.precision,
        changes=info.changes,
        result=result,
        splits=[split for split in SPLITS if result and result.photos.get(split)],
        counts=counts,
        few=[label for label, of in counts.items() if of["train"] < FEW_PHOTOS],
        few_photos=FEW_PHOTOS,
        measured=[*(_own_splits(result) if result else ()), *evaluations],
        elsewhere=bool(evaluations),
        input=INPUT,
        output=OUTPUT,
    )


def recorded_evaluations(run: FinishedRun) -> tuple[Measured, ...]:
    """Return what `finetune evaluate` has left in a run's folder of these very weights on other photos, by path."""
    found = []
    for path in sorted((run.files.path / "evaluation").glob(f"*/{RECORD}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        photos, accuracy = record["photos"], record["accuracy"]
        # the run's own splits are in its result
        own = photos["root"] == run.manifest.store.address
        if record["model"]["weights_sha256"] == run.weights_sha256 and not own:
            found.append(
                Measured(
                    where=path.parent.name,
                    photos=photos["count"],
                    accuracy=accuracy["value"],
                    interval=Proportion(**accuracy),
                    calibration_error=record["calibration_error"],
                    seen=photos["seen_in_training"],
                )
            )
    return tuple(found)


def _own_splits(result: Result) -> Iterator[Measured]:
    calibration = result.calibration
    for split, accuracy, errors in (
        ("val", result.val_accuracy, calibration.val),
        ("test", result.test_accuracy, calibration.test),
    ):
        photos = result.photos.get(split, 0)
        if photos and accuracy is not None:
            seen = photos if split == "val" else 0
            interval = _interval(accuracy, photos)
            yield Measured(split, photos, accuracy, interval, errors.after if errors else None, seen)


def _interval(accuracy: float, photos: int) -> Proportion | None:
    """Return Wilson's interval, or None of a mean that is not a count of right answers among these photos."""
    correct = round(accuracy * photos)
    return wilson(correct, photos) if abs(correct / photos - accuracy) < 1e-6 else None


def _photos_by_class(manifest: Manifest) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {label: Counter() for label in manifest.classes}
    for photo in manifest.of(*SPLITS):
        counts[photo.label][photo.split] += 1
    return counts


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(text: str) -> str:
    """Return text that Markdown leaves as it is, in a table too."""
    escaped = re.sub(r"[\\`*_\[\]<>#|~&]", r"\\\g<0>", " ".join(text.split()))
    # at its start, the marks of a list
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", escaped)

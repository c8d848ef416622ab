"""`finetune evaluate`: a run's model, in torch, on its own split or on another labelled folder."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from finetune.config import EvaluateConfig
from finetune.data.audit import read_labelled
from finetune.data.manifest import Manifest, summarise_skipped
from finetune.errors import FinetuneError, nearest
from finetune.evaluation.metrics import Scores, measure
from finetune.evaluation.report import write_report
from finetune.evaluation.scoring import score_with_torch
from finetune.files import replacing
from finetune.run import FinishedRun


def main(config: EvaluateConfig) -> str:
    """Score the photos, write predictions.csv and report.html, and return the table of figures."""
    run = FinishedRun(config.run)
    manifest = _photos_of(run, config)
    photos = manifest.of(config.split if config.data.root is None else "test")
    if not photos:
        raise FinetuneError(f"run={config.run} has no {config.split} photos; choose another split=, or give data.root=")
    if config.data.root is None:
        run.require(photos)
    classifier = run.classifier()
    logits = score_with_torch(classifier, run.result.preprocessing, manifest.files(photos))
    probabilities = torch.softmax(logits / classifier.temperature, dim=1).numpy()
    targets = [run.result.classes.index(photo.label) for photo in photos]
    scores = measure(probabilities, targets, run.result.classes, photos)
    output = config.output or config.run / "evaluation"
    _save_predictions(output / "predictions.csv", scores, run.result.classes)
    write_report(output / "report.html", run.result, manifest, scores, metrics=[])
    return _table(scores, manifest, output)


def _photos_of(run: FinishedRun, config: EvaluateConfig) -> Manifest:
    if config.data.root is None:
        return run.manifest
    manifest = read_labelled(config.data.root, run.data.class_from)
    for label in manifest.classes:
        if label not in run.result.classes:
            raise FinetuneError(
                f"data.root={config.data.root} has a class '{label}' that the model does not know"
                f"{nearest(label, run.result.classes)} (it knows {', '.join(run.result.classes)})"
            )
    return manifest


def _save_predictions(path: Path, scores: Scores, classes: tuple[str, ...]) -> None:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "answer", "probability", *classes])
        for photo, answer, row in zip(scores.photos, scores.answers, scores.probabilities, strict=True):
            writer.writerow([photo.path, photo.label, classes[answer], f"{row.max():.6f}", *(f"{p:.6f}" for p in row)])


def _table(scores: Scores, manifest: Manifest, output: Path) -> str:
    low, high = scores.interval
    width = max(len("class"), *(len(row.label) for row in scores.by_class))
    lines = [
        f"accuracy {100 * scores.accuracy:.1f} % on {len(scores.photos)} photos "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %), "
        f"calibration error {100 * scores.calibration_error:.1f} %",
        f"balanced accuracy {100 * scores.balanced_accuracy:.1f} %, the mean recall of the classes",
        "",
        f"{'class':<{width}}  photos  precision  recall     F1",
    ]
    lines += [
        f"{row.label:<{width}}  {row.photos:>6}  {row.precision:>9.3f}  {row.recall:>6.3f}  {row.f1:>5.3f}"
        for row in scores.by_class
    ]
    if manifest.skipped:
        lines += ["", summarise_skipped(manifest.skipped)]
    return "\n".join([*lines, "", f"report: {output / 'report.html'}", f"each photo: {output / 'predictions.csv'}"])

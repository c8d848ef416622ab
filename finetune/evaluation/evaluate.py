"""`finetune evaluate`: how good a model is, on its run's own split or on other labelled photos."""

from __future__ import annotations

import time
from pathlib import Path

from finetune.config import EvaluateConfig
from finetune.data.manifest import summarise_skipped
from finetune.evaluation.metrics import ClassScores, Proportion, Scores, measure
from finetune.evaluation.record import identify, require_free, save
from finetune.evaluation.report import write_evaluation_report
from finetune.evaluation.subject import Chosen, Subject, choose_photos, open_subject
from finetune.run import FinishedRun

MOST_ROWS = 40
# What devices, sessions and workers do the first time is no part of their speed, so these are answered before.
WARM_UP_PHOTOS = 64


def main(config: EvaluateConfig) -> str:
    """Score the photos, write the evaluation's folder, and return the table of figures."""
    run = FinishedRun(config.run) if config.run else None
    subject = open_subject(config, run)
    chosen = choose_photos(config, subject, run)
    output = config.output or _default_output(config, subject, chosen)
    former = require_free(output, identify(subject, chosen))
    files = chosen.manifest.files(chosen.photos)
    subject.answer(files[:WARM_UP_PHOTOS])
    started = time.monotonic()
    probabilities = subject.answer(files)
    seconds = time.monotonic() - started
    number = {label: k for k, label in enumerate(subject.classes)}
    targets = [number[photo.label] for photo in chosen.photos]
    scores = measure(probabilities, targets, subject.classes, chosen.photos, config.top_k)
    save(output, subject, chosen, scores, seconds)
    write_evaluation_report(output / "report.html", subject, chosen, scores)
    lines = [*_figures(scores, seconds), *_remarks(subject, chosen, scores), "", *_table(scores)]
    if chosen.manifest.skipped:
        lines += ["", summarise_skipped(chosen.manifest.skipped)]
    if former:
        lines += [
            "",
            f"replaces the evaluation of {former['written']}: accuracy {_percent(former['accuracy']['value'])}",
        ]
    return "\n".join([*lines, "", f"report: {output / 'report.html'}", f"each photo: {output / 'predictions.csv'}"])


def _default_output(config: EvaluateConfig, subject: Subject, chosen: Chosen) -> Path:
    """Each model and set of photos has its own folder, in the run's where there is one."""
    address = config.data.root
    parts: list[str | None] = [Path(address.partition("?")[0]).name or "photos"] if address else []
    parts.append(chosen.split)
    if config.run is None:
        return Path("evaluation") / subject.name.replace(" version ", "-") / "-".join(filter(None, parts))
    if config.model is not None:
        parts.append("onnx")
    return config.run / "evaluation" / "-".join(filter(None, parts))


def _figures(scores: Scores, seconds: float) -> list[str]:
    top = [f", top {k} {_percent(share.value)}" for k, share in scores.top.items() if k > 1]
    macro = scores.macro
    return [
        f"accuracy {_percent(scores.accuracy)} on {len(scores.photos)} photos ({_interval(scores.top[1])}), "
        f"calibration error {_percent(scores.calibration_error)}{''.join(top)}",
        f"balanced accuracy {_percent(scores.balanced_accuracy)} ({_interval(scores.balanced)}), "
        "the mean recall of the classes",
        f"macro precision {macro.precision:.3f}, recall {macro.recall:.3f}, F1 {macro.f1:.3f}; "
        f"log loss {scores.log_loss:.3f}",
        f"{len(scores.photos) / seconds:.0f} photos a second",
    ]


def _remarks(subject: Subject, chosen: Chosen, scores: Scores) -> list[str]:
    lines = []
    if len(scores.shown) < len(subject.classes):
        lines.append(
            f"these photos show {len(scores.shown)} of the {len(subject.classes)} classes; means are over those"
        )
    if chosen.seen:
        lines.append(f"{chosen.seen} of these photos took part in training or in choosing: the figures flatter")
    return lines


def _table(scores: Scores) -> list[str]:
    rows = list(scores.by_class)
    said = []
    if len(rows) > MOST_ROWS:
        rows = sorted(scores.shown, key=lambda row: row.f1 or 0.0)[:MOST_ROWS]
        said = [f"the {len(rows)} classes of the lowest F1; evaluation.json has all {len(scores.by_class)}:"]
    width = max(len("class"), *(len(row.label) for row in rows))
    return [
        *said,
        f"{'class':<{width}}  photos  precision  recall     F1",
        *(f"{row.label:<{width}}  {row.photos:>6}  {_cells(row)}" for row in rows),
    ]


def _cells(row: ClassScores) -> str:
    precision, recall = (f"{share.value:.3f}" if share else "-" for share in (row.precision, row.recall))
    return f"{precision:>9}  {recall:>6}  {'-' if row.f1 is None else f'{row.f1:.3f}':>5}"


def _interval(share: Proportion) -> str:
    return f"95 % interval {100 * share.low:.1f} to {100 * share.high:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""From a folder of photos to a run folder."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.calibration import BeforeAfter, Calibration, before_and_after
from finetune.config import TrainConfig
from finetune.data.audit import Audit, audit
from finetune.data.audit_report import write_audit
from finetune.data.findings import KINDS
from finetune.data.listing import list_source
from finetune.data.manifest import Manifest, summarise_skipped
from finetune.data.splits import Split
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import Scores, measure
from finetune.evaluation.report import write_report
from finetune.models.backbone import BackboneSpec
from finetune.run import FinishedRun, Result, Run, versions
from finetune.stores import readable
from finetune.training.deadline import Deadline
from finetune.training.fit import fit
from finetune.training.fitted import Fitted
from finetune.training.precision import require_precision
from finetune.training.processes import Processes
from finetune.training.sparsity import zero_share
from finetune.training.tracking import require_loggers
from finetune.training.watching import watching
from finetune.training.world import describe_world

log = logging.getLogger(__name__)


def train(config: TrainConfig, spec: BackboneSpec) -> str:
    """Train as configured, or finish what was interrupted; returns what came of it."""
    require_loggers(config.logger)
    device = _device(config.trainer.accelerator)
    processes = Processes(describe_world(config, device), device)
    if processes.world.rank:
        return processes.serve()
    run = Run(config.output)
    with processes:
        # bad photos are reported before a folder is made, and a finished run needs none
        audited = None if run.config.is_file() else _audit(config)
        with run.claimed():
            if run.begin(config):
                finished = FinishedRun(run.path)
                return f"already finished: {run.path}\n{summarise(finished.result)}{_changed_since(finished)}"
            return _train(config, spec, audited or _audit(config), run, processes)


def _train(config: TrainConfig, spec: BackboneSpec, audited: Audit, run: Run, processes: Processes) -> str:
    manifest = audited.manifest
    if run.manifest.is_file() and run.checkpoints.exists():
        before = Manifest.load(run.manifest, manifest.store)
        if before.fingerprint() != manifest.fingerprint():
            raise FinetuneError(
                f"the photos in {manifest.store.address} have changed since this run began "
                f"({len(before.photos)} files then, {len(manifest.photos)} now); "
                f"choose another output=, or delete {run.path}"
            )
    manifest.save(run.manifest)
    page = write_audit(audited, config.data, config.seed, run.path)
    if audited.findings:
        log.info("what was found in the photos: %s", page)
    started = time.monotonic()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    require_precision(config.trainer.precision, processes.device)
    deadline = Deadline.after(config.began, config.budget_minutes)
    with watching(config, run) as watch:
        fitted = fit(config, spec, manifest, run, processes, deadline, watch)
        watch.update(fitted.metrics)
        seconds = fitted.earlier_s + time.monotonic() - started
        result = _finish(config, manifest, run, fitted, seconds)
        watch.conclude(result)
    then = shlex.join(["finetune", "export", f"run={run.path}", "output=models"])
    took_s = time.monotonic() - config.began
    return "\n".join([f"{summarise(result)}, {took_s:.0f} s", f"report: {run.report}", f"next: {then}"])


def summarise(result: Result) -> str:
    """Return the figures a person wants first."""
    accuracies = [_both("validation", result.val_accuracy, result.val_balanced_accuracy)]
    if result.test_accuracy is not None and result.test_balanced_accuracy is not None:
        accuracies.append(_both("test", result.test_accuracy, result.test_balanced_accuracy))
    learned = ""
    if result.left_out:
        learned = f"budget_minutes left no time for {result.left_out} of {result.photos['train']} training photos\n"
    return f"{learned}{', '.join(accuracies)}; {result.backbone} at {result.image_size} px, freeze={result.freeze}"


def _both(split: str, accuracy: float, balanced: float) -> str:
    return f"{split} accuracy {100 * accuracy:.1f} % (balanced {100 * balanced:.1f} %)"


def _changed_since(run: FinishedRun) -> str:
    """Say so if files came or went since a finished run; their content is not read for that."""
    data = run.data
    try:
        listing = list_source(data.root, data.class_from, data.group_pattern)
    except FinetuneError:
        return ""  # the photos may well be gone by now
    now, then = {photo.path for photo in listing.photos}, {photo.path for photo in run.manifest.photos}
    if now == then:
        return ""
    return (
        f"\nsince then {len(now - then)} files came to {data.root} and {len(then - now)} went; "
        "another output= trains on what is there now"
    )


def _audit(config: TrainConfig) -> Audit:
    """Look at every photo; raises FinetuneError where they cannot be trained on."""
    if config.data.class_from == "none":
        raise FinetuneError("data.class_from=none gives no labels to train on; choose folder or path")
    found = audit(config.data, config.seed)
    found.require_trainable()
    for finding in found.findings:
        if finding.severity == "warning":
            case = finding.cases[0]
            example = f"{', '.join(map(readable, case.paths[:2]))}: {case.detail}".removeprefix(": ")
            log.warning("%s: %d (%s)", KINDS[finding.kind].title.lower(), len(finding.cases), example)
    if found.manifest.skipped:
        log.warning("%s", summarise_skipped(found.manifest.skipped))
    return found


def _device(accelerator: Literal["auto", "cpu", "gpu"]) -> torch.device:
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise FinetuneError("trainer.accelerator=gpu, but torch finds no CUDA GPU here; use auto or cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def _finish(config: TrainConfig, manifest: Manifest, run: Run, fitted: Fitted, seconds: float) -> Result:
    """Measure on the test photos and write what the run leaves behind, result.json last."""
    test = manifest.of("test")
    test_logits = fitted.score(test) if test else None
    scores = None if test_logits is None else _measure(fitted, manifest, test_logits)
    run.save_weights(fitted.classifier)
    result = _result(config, manifest, fitted, scores, _calibration(fitted, manifest, test_logits), seconds)
    if config.optimizer.l1:
        share = 100 * result.zero_share
        log.info("optimizer.l1=%g: %.1f %% of the trained weights are exactly 0", config.optimizer.l1, share)
    write_report(run.report, result, manifest, scores, fitted.metrics)
    run.save_result(result)
    for no_longer_needed in (run.ingredients, run.pixels):
        shutil.rmtree(no_longer_needed, ignore_errors=True)
    return result


def _result(
    config: TrainConfig,
    manifest: Manifest,
    fitted: Fitted,
    scores: Scores | None,
    calibration: Calibration,
    seconds: float,
) -> Result:
    return Result(
        val_accuracy=fitted.judged.accuracy,
        val_balanced_accuracy=fitted.judged.balanced_accuracy,
        test_accuracy=scores.accuracy if scores else None,
        test_balanced_accuracy=scores.balanced_accuracy if scores else None,
        calibration=calibration,
        train_seconds=round(seconds, 2),
        images_per_second=round(fitted.photos_seen / seconds, 2),
        trainable_parameters=fitted.trainable_parameters,
        total_parameters=sum(parameter.numel() for parameter in fitted.classifier.parameters()),
        zero_share=zero_share(fitted.classifier),
        soup_epochs=fitted.soup_epochs,
        freeze=fitted.freeze,
        imbalance=fitted.handling.method,
        imbalance_reason=fitted.handling.reason,
        backbone=fitted.spec.name,
        weights_from=fitted.weights_from,
        mean=fitted.spec.mean,
        std=fitted.spec.std,
        features=fitted.classifier.features,
        drop_stages=config.model.drop_stages,
        head=fitted.classifier.head.config,
        preprocessing=fitted.preprocessing,
        image_size=fitted.preprocessing.image_size,
        classes=manifest.classes,
        photos={split: len(manifest.of(split)) for split in ("train", "val", "test")},
        skipped=len(manifest.skipped),
        left_out=fitted.left_out,
        dataset=manifest.fingerprint(),
        seed=config.seed,
        versions=versions(),
    )


def _calibration(fitted: Fitted, manifest: Manifest, test_logits: Tensor | None) -> Calibration:
    temperature = fitted.classifier.temperature.item()

    def error(logits: Tensor, split: Split) -> BeforeAfter:
        return before_and_after(logits.numpy(), manifest.targets(manifest.of(split)), temperature)

    val = error(fitted.val_logits, "val")
    return Calibration(
        temperature=temperature, val=val, test=None if test_logits is None else error(test_logits, "test")
    )


def _measure(fitted: Fitted, manifest: Manifest, logits: Tensor) -> Scores:
    test = manifest.of("test")
    probabilities = torch.softmax(logits / fitted.classifier.temperature.cpu(), dim=1)
    return measure(probabilities.numpy(), manifest.targets(test), manifest.classes, test)

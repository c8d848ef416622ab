"""The search for the best head on a frozen backbone: over backbones, image sizes, feature sets and penalties.

All are tried on a sample of the photos first; only those that it leaves in the running see the others. Cheapest first,
so that whatever time there is gives the best answer that fits into it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from finetune.training.attempts import Attempt, Candidate, Search, expect, plan_attempts
from finetune.training.fitted import Metrics
from finetune.training.head_fits import HeadFit, fit_once
from finetune.training.imbalance import Judgement
from finetune.training.trial import Trial, plan_trial, validation

log = logging.getLogger(__name__)

# For the last fit, the report and the files of the run.
RESERVE_S = 5.0
# Standard errors by which an attempt may be behind on the sample and still see the other photos.
MOST_BEHIND = 1.0
# A sample of fewer photos a class says nothing.
LEAST_A_CLASS = 4


@dataclass
class Found:
    """The best candidate and the attempt it came from.

    rows: one for each candidate that was tried; and one for the best on the validation photos, where all took turns.
    """

    attempt: Attempt
    best: Candidate
    rows: list[Metrics] = field(default_factory=list)
    photos_seen: int = 0

    @cached_property
    def fit(self) -> HeadFit:
        """The best head, as it is after the training photos alone."""
        search, val = self.attempt.search, self.attempt.search.manifest.of("val")
        rows, targets = self.attempt.rows(search.manifest.of("train"), self.best.features)
        unseen = self.attempt.kept.of(search.manifest, val, self.best.features)
        wanted, classes = search.manifest.targets(val), len(search.manifest.classes)
        return fit_once(search.config, self.best.l2, rows, targets, classes, search.handling, unseen, wanted)

    @cached_property
    def unseen(self) -> torch.Tensor:
        """Its logits (N, classes) of the validation photos."""
        search = self.attempt.search
        return self.fit.logits(self.attempt.kept.of(search.manifest, search.manifest.of("val"), self.best.features))

    @property
    def judged(self) -> Judgement:
        """How it does on the validation photos."""
        search = self.attempt.search
        return search.handling.judge(self.unseen, torch.tensor(search.manifest.targets(search.manifest.of("val"))))


class _Tries:
    """All that has been tried so far."""

    def __init__(self, search: Search) -> None:
        self.search, self.photos_seen = search, 0
        self.rows: list[Metrics] = []

    def make(self, attempt: Attempt, trial: Trial, others: Sequence[Attempt]) -> Candidate:
        """Try every head on an attempt; others: those of which it tells what they will take."""
        started = time.monotonic()
        tried = attempt.candidates(trial)
        seconds = time.monotonic() - started
        best = max(tried, key=lambda candidate: candidate.judged.rank)
        self.rows += [_row(attempt, candidate, trial, candidate.judged, seconds) for candidate in tried]
        self.photos_seen += len(trial.photos) + self.search.config.probe.views * len(trial.learned)
        self.search.watch.update(self.rows)
        log.info(
            "%s at %d px: %s %.1f %%, balanced %.1f %%, on %d photos in %.0f s",
            *(attempt.backbone, attempt.image_size),
            "cross-validated accuracy" if trial.folds > 1 else "validation accuracy",
            *(100 * best.judged.accuracy, 100 * best.judged.balanced_accuracy, len(trial.held_out), seconds),
        )
        if attempt.kept.photo_s is not None:
            expect((attempt, *others), attempt, attempt.kept.photo_s)
        return best


def search_heads(search: Search) -> Found:
    """Try what fits into the time, and the cheapest in any case."""
    trial = plan_trial(search.manifest, search.config.seed)
    tries = _Tries(search)
    attempts = plan_attempts(search)
    running = _screen(attempts, trial, tries)
    found: Found | None = None
    for attempt in [each for each in running if _fits(each, trial)] or attempts[:1]:
        if found is not None and not _fits(attempt, trial, found.attempt):
            continue
        best = tries.make(attempt, trial, running[running.index(attempt) + 1 :] if attempt in running else ())
        if found is not None and best.judged.rank <= found.best.judged.rank:
            attempt.release()
        else:
            if found is not None:
                found.attempt.release()
            found = Found(attempt, best)
    assert found is not None
    found.rows, found.photos_seen = tries.rows, tries.photos_seen
    if trial.folds > 1:
        found.rows.append(_row(found.attempt, found.best, validation(search.manifest), found.judged, 0.0))
    return found


def _screen(attempts: Sequence[Attempt], trial: Trial, tries: _Tries) -> list[Attempt]:
    """Return the attempts that are not clearly behind on a sample, cheapest first; all where a sample saves nothing."""
    search = tries.search
    sample = trial.sample(max(search.config.probe.sample, LEAST_A_CLASS * len(search.manifest.classes)))
    if len(attempts) == 1 or 2 * len(sample.photos) > len(trial.photos):
        return list(attempts)
    best: dict[int, Candidate] = {}
    leader: int | None = None
    for number, attempt in enumerate(attempts):
        if best and not _fits(attempt, trial):
            continue
        best[number] = tries.make(attempt, sample, attempts[number + 1 :])
        if leader is not None and best[number].judged.rank <= best[leader].judged.rank:
            attempt.release()
        else:
            if leader is not None:
                attempts[leader].release()
            leader = number
    assert leader is not None
    weights = search.handling.photo_weights(torch.tensor(search.manifest.targets(sample.held_out)))
    behind = {number: _lead(best[leader], each, weights) > MOST_BEHIND for number, each in best.items()}
    if any(behind.values()):
        named = ", ".join(f"{attempts[k].backbone} at {attempts[k].image_size} px" for k in best if behind[k])
        log.info("behind by more than chance, so not tried on the other photos: %s", named)
    return [attempts[number] for number in best if not behind[number]]


def _lead(leader: Candidate, other: Candidate, weights: torch.Tensor) -> float:
    """Return by how many standard errors one is ahead, from photos that only one of them has right (McNemar 1947)."""
    difference = (leader.right.double() - other.right.double()) * weights
    spread = difference.square().sum().sqrt().item()
    return difference.sum().item() / spread if spread else 0.0


def _fits(attempt: Attempt, trial: Trial, better: Attempt | None = None) -> bool:
    """Whether an attempt, and what is to be done after it, fits into the time that is left; better: best so far."""
    search = attempt.search
    if not search.deadline.is_set:
        return True
    # whichever is better has the test photos to do
    after_s = max(each.cost_s * each.kept.missing(search.manifest.of("test")) for each in (attempt, better or attempt))
    needed_s, left_s = attempt.cost_s * attempt.passes(trial) + after_s + RESERVE_S, search.deadline.left_s
    if needed_s > left_s:
        log.info(
            "%s at %d px: not tried, it would take about %.0f s and %.0f s are left",
            *(attempt.backbone, attempt.image_size, math.ceil(needed_s), max(0.0, left_s)),
        )
    return needed_s <= left_s


def _row(attempt: Attempt, candidate: Candidate, trial: Trial, judged: Judgement, seconds: float) -> Metrics:
    return {
        "backbone": attempt.backbone,
        "image_size": attempt.image_size,
        "features": candidate.features,
        "l2": candidate.l2,
        "photos": len(trial.photos),
        "folds": trial.folds,
        "val_accuracy": round(judged.accuracy, 6),
        "val_balanced_accuracy": round(judged.balanced_accuracy, 6),
        "val_loss": round(judged.loss, 6),
        "seconds": round(seconds, 2),
    }

"""The search for the best head on a frozen backbone: over backbones, image sizes, feature sets and penalties.

Where there are many photos all are tried on a sample of them first, cheapest first; those that it leaves in the running
see the others, the best first. So a search costs little more than one pass, and whatever time there is gives an answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import NamedTuple

import torch

from finetune.training.affordable import affordable, require_time
from finetune.training.attempts import Attempt, Candidate, Search, expect, larger_attempt, plan_attempts
from finetune.training.fitted import Metrics
from finetune.training.head_fits import HeadFit, fit_once
from finetune.training.imbalance import Judgement
from finetune.training.trial import LEAST_A_CLASS, Trial, plan_trial, validation

log = logging.getLogger(__name__)

# For the last fit, the report and the files of the run.
RESERVE_S = 5.0
# What a photo takes in the fits with one penalty, before that is known: on one core, for some thousand features.
FIT_S = 0.0015
# Of the time of all fits of a trial: the best once more, exactly, and to all photos.
LAST_FITS = 0.1
# Standard errors by which an attempt may be behind on the sample and still see the other photos. One in six that are as
# good is lost by that, which costs less than a pass over all photos for each.
MOST_BEHIND = 1.0


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


class _Tried(NamedTuple):
    """An attempt and the best of its candidates."""

    attempt: Attempt
    candidate: Candidate


class _Tries:
    """All that has been tried so far, and what it tells of the time that the rest will take."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.rows: list[Metrics] = list(search.rows)
        self.seen: dict[tuple[str, int], int] = {}
        self.fits_s = FIT_S * len(search.config.probe.l2)

    def make(self, attempt: Attempt, trial: Trial, others: Sequence[Attempt]) -> Candidate:
        """Try every head on an attempt; others: those of which it tells what they will take."""
        started, computed_s = time.monotonic(), attempt.kept.computed_s
        tried = attempt.candidates(trial)
        seconds = time.monotonic() - started
        # what a photo takes in all the fits
        fits_s = seconds - (attempt.kept.computed_s - computed_s)
        self.fits_s = (1 + LAST_FITS) * fits_s / len(trial.photos)
        best = max(tried, key=lambda candidate: candidate.judged.rank)
        self.rows += [_row(attempt, candidate, trial, candidate.judged, seconds) for candidate in tried]
        # a sample is part of the whole that may follow
        self.seen[attempt.backbone, attempt.image_size] = attempt.learned_from(trial)
        self.search.watch.update(self.rows)
        log.info(
            "%s at %d px: %s %.1f %%, balanced %.1f %%, on %d photos in %.0f s",
            *(attempt.backbone, attempt.image_size),
            "cross-validated accuracy" if trial.folds > 1 else "validation accuracy",
            *(100 * best.judged.accuracy, 100 * best.judged.balanced_accuracy, len(trial.held_out), seconds),
        )
        if attempt.kept.photo_s is not None:
            expect((attempt, *others), attempt, attempt.cost.measured(attempt.kept.photo_s))
        return best

    def fit(self, attempt: Attempt, trial: Trial, whole: Trial, leader: Attempt | None = None) -> bool:
        """Whether an attempt fits into the time that is left, with all that follows from it; leader: the best so far.

        After a sample either of the two may have the whole to do, after the whole either of them the test photos.
        """
        if not self.search.deadline.is_set:
            return True
        leader = leader or attempt
        this_s = attempt.takes_s(trial, self.fits_s)
        needed_s = this_s + max(attempt.test_s, leader.test_s)
        if trial is not whole:
            after_s = leader.takes_s(whole, self.fits_s) + leader.test_s
            needed_s = max(attempt.takes_s(whole, self.fits_s) + attempt.test_s, this_s + after_s)
        left_s = self.left_s
        if needed_s > left_s:
            log.info(
                "%s at %d px: not tried%s, it would take about %.0f s and %.0f s are left",
                *(attempt.backbone, attempt.image_size),
                " on the other photos" if (attempt.backbone, attempt.image_size) in self.seen else "",
                *(math.ceil(needed_s), max(0.0, left_s)),
            )
            attempt.release()
        return needed_s <= left_s

    def afford(self, attempt: Attempt) -> Attempt:
        """Return the attempt on as many training photos as there is time for."""
        return affordable(attempt, self.fits_s, self.left_s) if self.search.deadline.is_set else attempt

    @property
    def left_s(self) -> float:
        return self.search.deadline.left_s - RESERVE_S


def search_heads(search: Search) -> Found:
    """Try what fits into the time, and the cheapest in any case: on fewer photos where there is no time for all."""
    tries = _Tries(search)
    cheapest, *dearer = plan_attempts(search)
    if search.deadline.is_set:
        require_time(cheapest, tries.fits_s, tries.left_s)
    first = tries.afford(cheapest)
    attempts = [first, *dearer] if first is cheapest else [first]
    trial = plan_trial(first.search.manifest, search.config.seed)
    sample = trial.sample(max(search.config.probe.sample, LEAST_A_CLASS * len(search.manifest.classes)))
    # where time is short the sample tells as well what all the photos will take
    if (len(attempts) > 1 or search.deadline.is_set) and 2 * len(sample.photos) <= len(trial.photos):
        running = _running(_climb(tries, _try_in_turn(tries, attempts, sample, trial), sample, trial), sample)
        leading = next((attempt for attempt in running if tries.fit(attempt, trial, trial)), None)
        if leading is None:
            leading = tries.afford(min(running, key=lambda attempt: attempt.cost.seconds))
            trial, running = plan_trial(leading.search.manifest, search.config.seed), []
        tried = _try_in_turn(tries, [leading, *(each for each in running if each is not leading)], trial, trial)
    else:
        tried = _climb(tries, _try_in_turn(tries, attempts, trial, trial), trial, trial)
    best = _leader(tried)
    found = Found(best.attempt, best.candidate, tries.rows, sum(tries.seen.values()))
    if trial.folds > 1:
        found.rows.append(_row(found.attempt, found.best, validation(best.attempt.search.manifest), found.judged, 0.0))
    return found


def _try_in_turn(tries: _Tries, attempts: Sequence[Attempt], trial: Trial, whole: Trial) -> list[_Tried]:
    """Try the first, and each of the others that still fits; only the best stays in memory."""
    tried: list[_Tried] = []
    for number, attempt in enumerate(attempts):
        if tried and not tries.fit(attempt, trial, whole, _leader(tried).attempt):
            continue
        tried.append(_Tried(attempt, tries.make(attempt, trial, attempts[number + 1 :])))
        _release_all_but(_leader(tried), tried)
    return tried


def _climb(tries: _Tries, tried: list[_Tried], trial: Trial, whole: Trial) -> list[_Tried]:
    """Where there is a time limit and the largest size is the best, go on to larger ones while they are better."""
    while tries.search.deadline.is_set:
        best = _leader(tried).attempt
        larger = larger_attempt(best)
        known = [each.attempt.image_size for each in tried if each.attempt.backbone == best.backbone]
        if larger is None or best.image_size < max(known) or not tries.fit(larger, trial, whole, best):
            break
        tried = [*tried, _Tried(larger, tries.make(larger, trial, ()))]
        _release_all_but(_leader(tried), tried)
    return tried


def _running(tried: Sequence[_Tried], sample: Trial) -> list[Attempt]:
    """Return the attempts that are not behind on a sample, the best first."""
    search, leader = tried[0].attempt.search, _leader(tried)
    weights = search.handling.photo_weights(torch.tensor(search.manifest.targets(sample.held_out)))
    ordered = sorted(tried, key=lambda each: each.candidate.judged.rank, reverse=True)
    behind = [lead(leader.candidate.right, each.candidate.right, weights) > MOST_BEHIND for each in ordered]
    if any(behind):
        named = (f"{each.attempt.backbone} at {each.attempt.image_size} px" for each in compress(ordered, behind))
        log.info("behind by more than a standard error, so not tried on the other photos: %s", ", ".join(named))
    return [each.attempt for each, is_behind in zip(ordered, behind, strict=True) if not is_behind]


def _release_all_but(kept: _Tried, tried: Sequence[_Tried]) -> None:
    for each in tried:
        if each is not kept:
            each.attempt.release()


def _leader(tried: Sequence[_Tried]) -> _Tried:
    return max(tried, key=lambda each: each.candidate.judged.rank)


def lead(right: torch.Tensor, others: torch.Tensor, weights: torch.Tensor) -> float:
    """Return by how many standard errors one is ahead, from photos that only one of them has right (McNemar 1947).

    right, others: which photos (N,) each has right.
    """
    difference = (right.double() - others.double()) * weights
    spread = difference.square().sum().sqrt().item()
    return difference.sum().item() / spread if spread else 0.0


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

"""How many photos can be learned from in the time that is left."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from finetune.data.manifest import Photo
from finetune.errors import FinetuneError
from finetune.training.attempts import Attempt
from finetune.training.trial import LEAST_A_CLASS, Trial, in_proportion

log = logging.getLogger(__name__)


def require_time(attempt: Attempt, fits_s: float, left_s: float) -> None:
    """Raise FinetuneError where there is no time for a few photos of each class and for those that measure."""
    least = _least(attempt)
    needed_s = _takes_s(attempt, _in_order(attempt)[:least], fits_s)
    if needed_s <= left_s:
        return
    budget_minutes = attempt.search.config.budget_minutes
    assert budget_minutes is not None
    enough = math.ceil(10 * (budget_minutes + (needed_s - left_s) / 60)) / 10
    raise FinetuneError(
        f"budget_minutes={budget_minutes:g} is too short: {least} training photos, the least that tells "
        f"anything, and the {len(attempt.search.manifest.of('val', 'test'))} that validate and test take about "
        f"{needed_s:.0f} s with {attempt.backbone} at {attempt.image_size} px, and {max(0.0, left_s):.0f} s are left "
        f"for them; give budget_minutes={enough:g} or more, or a smaller data.image_size or model.backbone"
    )


def affordable(attempt: Attempt, fits_s: float, left_s: float) -> Attempt:
    """Return an attempt on as many training photos as there is time for; itself where that is all of them.

    Classes keep their proportions, but for a few photos that each gives; what validates or tests is never left out.
    fits_s: what a photo takes in the fits, as far as is known.
    """
    manifest = attempt.search.manifest
    train = _in_order(attempt)
    fits = bisect_right(range(len(train) + 1), left_s, key=lambda count: _takes_s(attempt, train[:count], fits_s)) - 1
    count = max(fits, _least(attempt))
    if count == len(train):
        return attempt
    log.warning(
        "budget_minutes=%g leaves time for %d of %d training photos (%s at %d px): they are learned from, "
        "in the proportions of all",
        *(attempt.search.config.budget_minutes, count, len(train), attempt.backbone, attempt.image_size),
    )
    left_out = set(train[count:])
    fewer = replace(manifest, photos=tuple(photo for photo in manifest.photos if photo not in left_out))
    return attempt.on(replace(attempt.search, manifest=fewer, left_out=attempt.search.left_out + len(left_out)))


def _in_order(attempt: Attempt) -> list[Photo]:
    """Return the training photos, those first that are learned from where there is no time for others."""
    train = attempt.search.manifest.of("train")
    return [train[place] for place in in_proportion(train)]


def _least(attempt: Attempt) -> int:
    manifest = attempt.search.manifest
    return min(len(manifest.of("train")), LEAST_A_CLASS * len(manifest.classes))


def _takes_s(attempt: Attempt, train: Sequence[Photo], fits_s: float) -> float:
    """Return what so many training photos take, with those that validate and test."""
    photos = (*train, *attempt.search.manifest.of("val"))
    return attempt.takes_s(Trial(photos, (0,) * len(photos)), fits_s) + attempt.test_s

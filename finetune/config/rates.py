"""Learning rates that are given for a number of photos a step (Goyal et al. 2017: the linear scaling rule)."""

from __future__ import annotations

import re
from typing import Any

PER_PHOTOS = re.compile(r"(?P<rate>\d*\.?\d+(e-?\d+)?) per (?P<photos>[1-9]\d*)")


def is_per_photos(rate: object) -> bool:
    """Whether it is given as '0.003 per 512'."""
    return isinstance(rate, str) and PER_PHOTOS.fullmatch(rate) is not None


def scale_learning_rate(values: Any) -> Any:
    """Turn '0.003 per 512' into the number that it is for data.batch_size x trainer.accumulate photos a step.

    What cannot be read is left as it is, for the field to refuse.
    """
    try:
        rate = values["optimizer"]["learning_rate"]
        batch_size, batches = values["data"]["batch_size"], values["trainer"]["accumulate"]
    except (KeyError, TypeError):
        return values
    given = PER_PHOTOS.fullmatch(rate) if isinstance(rate, str) else None
    if given is None or not isinstance(batch_size, int) or not isinstance(batches, int) or batch_size * batches < 1:
        return values
    scaled = float(given["rate"]) * batch_size * batches / int(given["photos"])
    return {**values, "optimizer": {**values["optimizer"], "learning_rate": scaled}}

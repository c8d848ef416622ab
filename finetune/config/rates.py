"""Learning rates that are given for a number of photos a step (Goyal et al. 2017: the linear scaling rule)."""

from __future__ import annotations

import re
from typing import Any

PER_PHOTOS = re.compile(r"(?P<rate>\S+) per (?P<photos>[1-9]\d*)")


def scale_learning_rate(values: Any) -> Any:
    """Turn '0.003 per 512' into the number that it is for data.batch_size x trainer.accumulate photos a step.

    What cannot be read is left as it is, for the field to refuse.
    """
    try:
        given = PER_PHOTOS.fullmatch(values["optimizer"]["learning_rate"])
        photos = values["data"]["batch_size"] * values["trainer"]["accumulate"]
        rate = float(given["rate"]) * photos / int(given["photos"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return values
    return {**values, "optimizer": {**values["optimizer"], "learning_rate": rate}}

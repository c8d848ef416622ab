"""How long photos take here, measured before anything is promised."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch.nn import functional

from finetune.models.classifier import Classifier

# after one that is not timed
TIMED = 2
CPU_BATCH, GPU_BATCH = 4, 32


class Cost(NamedTuple):
    """Seconds that a photo takes: to be read, and to be computed at an image size."""

    read_s: float = 0.0
    compute_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.read_s + self.compute_s

    def at(self, area: float) -> Cost:
        """Return what it takes at so many times the area: computing goes with it, reading does not."""
        return Cost(self.read_s, self.compute_s * area)

    def measured(self, seconds: float) -> Cost:
        """Return what it takes where it was seen to be so many seconds in all."""
        if not self.seconds:
            return Cost(0.0, seconds)
        return Cost(*(seconds * part / self.seconds for part in self))


def seconds_a_training_photo(classifier: Classifier, image_size: int, device: torch.device) -> float:
    """Return what a photo takes, forward and backward through everything; the classifier is left as it was."""
    batch = GPU_BATCH if device.type == "cuda" else CPU_BATCH
    # in eval mode, which costs the same: batch norm must not see blank photos
    model = classifier.to(device).to(memory_format=torch.channels_last).eval()
    images = torch.zeros(batch, image_size, image_size, 3, dtype=torch.uint8, device=device)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    started = time.monotonic()
    for number in range(1 + TIMED):
        if number == 1:
            started = _now(device)
        functional.cross_entropy(model(images), targets).backward()  # type: ignore[no-untyped-call]
    seconds = (_now(device) - started) / (TIMED * batch)
    model.zero_grad(set_to_none=True)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()

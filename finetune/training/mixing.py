"""Mixup and cutmix: training batches in which two photos and their labels are blended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from finetune.config import AugmentConfig
from finetune.config.tables import value_at

# Keeps its draws apart from those of single photos, which also come from (seed, epoch, number).
STREAM = 1


class BatchMixing:
    """Blend the photos of a batch in pairs, as Zhang et al. 2018 (mixup) or Yun et al. 2019 (cutmix).

    The draws of a batch depend on (seed, epoch, number of the batch) only, so that a resumed run repeats them.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        """mixup, cutmix: alphas, either or both above 0; with both, each batch gets one of them."""
        self.seed = seed
        self.mixup = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """images: (N, H, W, 3) uint8; targets: (N,); returns float32 images in levels, and shares of classes (N, C).

        Blending levels is blending what the model sees, as its normalisation is linear.
        """
        count = len(images)
        if count % 2:
            # timm pairs the first with the last and so on: with the second once more at the end, all have a partner
            images = torch.cat([images, images[1 % count][None]])
            targets = torch.cat([targets, targets[1 % count][None]])
        channels_first = images.permute(0, 3, 1, 2).float()
        with _numpy_seeded(self.seed, epoch, number):
            mixed, shares = self.mixup(channels_first, targets)
        return mixed[:count].permute(0, 2, 3, 1), shares[:count]


def configured_mixing(config: AugmentConfig, photos: int, classes: int, seed: int) -> BatchMixing | None:
    """Return the mixing for so many training photos, or None where there is none."""
    mixup = value_at(config.mixup, photos)
    return BatchMixing(mixup, config.cutmix, classes, seed) if mixup > 0 or config.cutmix > 0 else None


@contextmanager
def _numpy_seeded(*words: int) -> Iterator[None]:
    """Seed numpy's global generator, which timm draws from, and leave it as it was."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(words, spawn_key=(STREAM,)).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)

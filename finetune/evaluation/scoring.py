"""Class scores of many photos, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from finetune.models.allocator import keep_freed_memory
from finetune.models.classifier import Classifier
from finetune.parallel import ordered_map
from finetune.preprocess import Preprocessing, Readable, load_pixels
from finetune.progress import track

# On a CPU the activations of a few photos stay in the cache: larger batches are slower.
CPU_BATCH, GPU_BATCH = 4, 64


def score_with_torch(classifier: Classifier, preprocessing: Preprocessing, files: Sequence[Readable]) -> Tensor:
    """Return logits (N, classes) of photos in order, on the CPU; the classifier runs where it is, in eval mode."""
    classifier.eval().to(memory_format=torch.channels_last)
    device = classifier.temperature.device
    if device.type == "cpu":
        keep_freed_memory()
    size = GPU_BATCH if device.type == "cuda" else CPU_BATCH
    pixels = ordered_map(lambda file: load_pixels(file, preprocessing), files)
    shown = iter(track(pixels, "scoring photos", total=len(files)))
    logits = []
    with torch.inference_mode():
        while batch := list(islice(shown, size)):
            images = torch.from_numpy(np.stack(batch)).to(device)
            logits.append(classifier(images).float().cpu())
    return torch.cat(logits)

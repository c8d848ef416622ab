"""How many photos a batch may have for memory to suffice.

A batch is what all processes take in one step: each a share of it, on a GPU of its own or in the memory of a machine.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from finetune.config import OptimizerConfig, TrainConfig
from finetune.errors import FinetuneError
from finetune.memory import available_bytes
from finetune.models.classifier import Classifier
from finetune.models.freezing import FreezingPlan, apply_freezing
from finetune.run import Run
from finetune.training.optimizer import build_optimizer
from finetune.training.tuned import found_once
from finetune.training.world import LEAST_PHOTOS, World

log = logging.getLogger(__name__)

# Larger batches take fewer steps to learn from, and on a CPU they are no faster a photo.
MOST_ON_GPU, MOST_ON_CPU = 1024, 64
STEPS_AN_EPOCH = 8
# Of the memory there is: the rest is for loaders, validation and what fragments.
GPU_SHARE, CPU_SHARE = 0.9, 0.5
# What the backward pass holds at once beside what the forward pass kept.
BACKWARD = 1.5
# the search takes no step that counts
ANY_RATE = 1e-6
AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class TrainingStep:
    """A step as the training will take them, with all that ever trains; a share runs on a copy of the classifier."""

    classifier: Classifier
    plan: FreezingPlan
    optimizer: OptimizerConfig
    precision: str
    image_size: int
    device: torch.device
    world: World

    def batch_size(self, most: int) -> int:
        """Return the largest batch up to `most`, or the smallest, that memory suffices for, in shares of powers of two.

        Raises FinetuneError without any.
        """
        fits = self._fits_on_gpu() if self.device.type == "cuda" else self._fits_on_cpu()
        share, larger = 0, LEAST_PHOTOS
        while larger <= max(LEAST_PHOTOS, most // self.world.size) and fits(larger):
            share, larger = larger, 2 * larger
        if not share:
            raise FinetuneError(
                f"data.batch_size=auto: a step of {self.world.least_batch} photos at {self.image_size} px does not fit "
                "the memory; use a smaller data.image_size, a smaller model.backbone, or "
                "trainer.gradient_checkpointing=true"
            )
        return share * self.world.size

    def holds(self, photos: int) -> bool:
        """Whether memory suffices for a batch of so many."""
        return self._fits_on_cpu()(self._share(photos))

    def cannot_hold(self, photos: int) -> bool:
        """Whether so many photos take more memory than a CPU has free even without what the backward pass adds."""
        return self._share(photos) * self._kept_a_photo() > self._available_bytes()

    def _share(self, photos: int) -> int:
        return math.ceil(photos / self.world.size)

    def _available_bytes(self) -> float:
        """Of a CPU, for one of the processes that take a step at the same time."""
        return available_bytes() / self.world.local_size

    def _fits_on_cpu(self) -> Callable[[int], bool]:
        """By what the forward pass keeps of each photo: with too much the process would be killed, with no error."""
        a_photo = BACKWARD * self._kept_a_photo()
        # gradients and, of most optimizers, two moments
        trained = sum(p.nbytes for name, p in self.classifier.named_parameters() if name in self.plan.ever)
        room = CPU_SHARE * self._available_bytes() - 3 * trained
        return lambda photos: photos * a_photo <= room

    def _kept_a_photo(self) -> float:
        """Return the bytes that the forward pass keeps of a photo for the backward pass, on a CPU."""
        classifier = self._copy()
        kept: dict[int, int] = {
            parameter.untyped_storage().data_ptr(): 0 for parameter in (*classifier.parameters(), *classifier.buffers())
        }

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        with isolate_rng(), self._autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            classifier(self._images(LEAST_PHOTOS))
        return sum(kept.values()) / LEAST_PHOTOS

    def _fits_on_gpu(self) -> Callable[[int], bool]:
        """By trying: two steps, as an optimizer makes its moments in the first."""
        classifier = self._copy()
        optimizer = build_optimizer(self.optimizer.at_rate(ANY_RATE), classifier, self.plan.rates)
        free, _ = torch.cuda.mem_get_info(self.device)
        room = GPU_SHARE * (free + torch.cuda.memory_reserved(self.device))

        def fits(photos: int) -> bool:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            try:
                for _ in range(2):
                    optimizer.zero_grad()
                    with isolate_rng(), self._autocast():
                        loss = classifier(self._images(photos)).float().logsumexp(1).mean()
                    loss.backward()
                    optimizer.step()
            except torch.OutOfMemoryError:
                return False
            return torch.cuda.max_memory_reserved(self.device) <= room

        return fits

    def _copy(self) -> Classifier:
        classifier = copy.deepcopy(self.classifier).to(self.device)
        apply_freezing(classifier, self.plan.ever)
        return classifier

    def _images(self, photos: int) -> Tensor:
        side = self.image_size
        return torch.zeros(photos, side, side, 3, dtype=torch.uint8, device=self.device)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def settle_batch_size(config: TrainConfig, step: TrainingStep, photos: int, run: Run) -> int:
    """Return the number of photos a batch, found if it is `auto`.

    photos: how many there are to train on; an epoch has at least eight batches of them.
    """
    if config.data.batch_size != "auto":
        return config.data.batch_size
    on_gpu = step.device.type == "cuda"
    most = min(MOST_ON_GPU if on_gpu else MOST_ON_CPU, photos // STEPS_AN_EPOCH)
    size = found_once(run.batch_size, lambda: step.batch_size(most), int)
    if on_gpu:
        torch.cuda.empty_cache()
    log.info("batch size: %d (at most %d here)", size, max(step.world.least_batch, most))
    return size

"""trainer.gradient_checkpointing: activations are not kept but computed again for the gradients (Chen et al. 2016)."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor

# every batch norm there is, timm's with an activation too
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.training.module import FineTuner


def checkpoint_gradients(classifier: Classifier, name: str) -> None:
    """Switch it on; raises FinetuneError where timm cannot for this architecture."""
    network = classifier.backbone.network
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, TypeError):
        raise FinetuneError(
            f"trainer.gradient_checkpointing=true: timm has none for {name}; use false, and a smaller "
            "data.batch_size with trainer.accumulate where memory is short"
        ) from None


class StatisticsOnce(pl.Callback):
    """Keeps the second forward pass from counting its batch in the running statistics of batch norms once more.

    By their momentum: torch refuses a second pass that keeps other tensors, as it would without statistics.
    """

    def __init__(self) -> None:
        self.paused: list[tuple[_BatchNorm, float | None, Tensor]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        # one that is frozen uses its statistics, in both passes
        norms = (module for module in pl_module.modules() if isinstance(module, _BatchNorm) and module.training)
        self.paused = [
            (norm, norm.momentum, norm.num_batches_tracked.clone())
            for norm in norms
            if norm.num_batches_tracked is not None
        ]
        for norm, _, _ in self.paused:
            norm.momentum = 0.0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for norm, momentum, batches in self.paused:
            norm.momentum = momentum
            norm.num_batches_tracked = batches
        self.paused = []

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # what scores and exports has no use for it
        assert isinstance(pl_module, FineTuner)
        pl_module.classifier.backbone.network.set_grad_checkpointing(False)  # type: ignore[operator]

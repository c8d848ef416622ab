"""trainer.compile: the classifier as machine code of its own (torch.compile), while it trains."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.training.module import FineTuner


def compiled(classifier: Classifier, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what answers as the classifier does; the classifier itself, its weights and their names stay as they are.

    Raises FinetuneError where there is no compiler for it.
    """
    _require_compiler(device)
    answer: Callable[[Tensor], Tensor] = torch.compile(classifier.forward)
    return answer


class CompiledPhases(pl.Callback):
    """Compiles anew where other layers begin to train.

    torch would notice by itself, but keeps every version, and after eight of them runs uncompiled without a word.
    """

    def __init__(self) -> None:
        self.trained: frozenset[str] | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FineTuner)
        trained = pl_module.plan.trainable(trainer.current_epoch)
        if self.trained not in (None, trained):
            torch.compiler.reset()
        self.trained = trained


def _require_compiler(device: torch.device) -> None:
    # as torch looks for them: on a GPU Triton compiles a launcher in C
    variable, usual = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", _cpp_compilers())
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else usual)):
        raise FinetuneError(
            f"trainer.compile=true needs a compiler, and {named or ' or '.join(usual)} is not here; install one "
            f"(apt-get install g++), name one in the variable {variable}, or use trainer.compile=false"
        )


def _cpp_compilers() -> tuple[str, ...]:
    return {"darwin": ("clang++",), "win32": ("cl",)}.get(sys.platform, ("g++",))

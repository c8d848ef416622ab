"""`augmented.png`: the first batch that is trained on, as the network sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from finetune.drawing import INK, blank, shortened, write
from finetune.files import replacing
from finetune.preprocess import Pixels
from finetune.training.module import FineTuner

COLUMNS, MOST_PHOTOS = 8, 64
CELL_PX, GAP_PX, LABEL_PX, FONT_PX, MARGIN_PX = 160, 10, 26, 16, 24


class FirstBatch(pl.Callback):
    """Draws the first batch of a run, mixed if batches are, and hands the file on."""

    def __init__(self, picture: Path, classes: tuple[str, ...], show: Callable[[str, Path], None]) -> None:
        self.picture, self.classes, self.show = picture, classes, show

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or self.picture.is_file():
            return
        assert isinstance(pl_module, FineTuner)
        images, targets = batch
        if pl_module.mixing is not None:
            # its draws depend on the batch alone: these are the photos that are about to be trained on
            images, targets = pl_module.mixing(images, targets, pl_module.current_epoch, batch_idx)
        labels = [self._label(target) for target in targets[:MOST_PHOTOS].cpu()]
        pixels = images[:MOST_PHOTOS].float().round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        with replacing(self.picture) as beside:
            Image.fromarray(draw_batch(pixels, labels)).save(beside, optimize=True)
        self.show("augmented", self.picture)

    def _label(self, target: Tensor) -> str:
        """target: a class number, or the shares of the classes (C,) in a mixed photo."""
        if target.ndim == 0:
            return self.classes[int(target)]
        shares: list[tuple[float, str]] = [
            (float(target[number]), self.classes[number]) for number in target.argsort(descending=True)[:2]
        ]
        if round(100 * shares[0][0]) == 100:
            return shares[0][1]
        return ", ".join(f"{round(100 * share)} % {name}" for share, name in shares)


def draw_batch(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], labels: Sequence[str]) -> Pixels:
    """Lay out photos (N, H, W, 3) with a label below each."""
    rows = -(-len(images) // COLUMNS)
    width = 2 * MARGIN_PX + COLUMNS * (CELL_PX + GAP_PX) - GAP_PX
    sheet = blank(width, 2 * MARGIN_PX + rows * (CELL_PX + LABEL_PX + GAP_PX) - GAP_PX)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN_PX + column * (CELL_PX + GAP_PX), MARGIN_PX + row * (CELL_PX + LABEL_PX + GAP_PX)
        cell = Image.fromarray(image).resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
        sheet[top : top + CELL_PX, left : left + CELL_PX] = np.asarray(cell)
        write(sheet, shortened(label, CELL_PX, FONT_PX), (left, top + CELL_PX + FONT_PX + 3), INK, FONT_PX)
    return sheet

"""Batches of uint8 photos for training and validation."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest
from finetune.data.sampling import BalancedShuffle, EpochShuffle, Place, Sampling
from finetune.parallel import usable_cores
from finetune.preprocess import Preprocessing, Readable, decode, load_pixels

MOST_WORKERS = 8


class PlainPhotos(Dataset[tuple[Tensor, int]]):
    """Photos as the server will see them: (H, W, 3) uint8 and the class number."""

    def __init__(self, files: Sequence[Readable], targets: Sequence[int], preprocessing: Preprocessing) -> None:
        self.files, self.targets, self.preprocessing = files, targets, preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return _tensor(load_pixels(self.files[number], self.preprocessing)), self.targets[number]


class DistortedPhotos(Dataset[tuple[Tensor, int]]):
    """Training photos, distorted anew in every epoch."""

    def __init__(
        self,
        files: Sequence[Readable],
        targets: Sequence[int],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        self.files, self.targets = files, targets
        self.augmentation, self.preprocessing, self.seed = augmentation, preprocessing, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        """Every part of the place seeds the distortion: it depends on no worker, and a photo drawn twice gets two."""
        _, number, _ = place
        file = self.files[number]
        if self.augmentation.input is None:
            pixels = np.asarray(decode(file, None, self.preprocessing.image_size, self.preprocessing.alpha_over))
        else:
            pixels = load_pixels(file, self.augmentation.input)
        seed = int(np.random.SeedSequence((self.seed, *place)).generate_state(1)[0])
        return _tensor(self.augmentation(pixels, seed)), self.targets[number]


class PhotoData(pl.LightningDataModule):
    """Loaders over a manifest's train and val splits."""

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        num_workers: int | str,
        seed: int,
        sampling: Sampling = "shuffled",
    ) -> None:
        super().__init__()
        self.manifest, self.preprocessing, self.augmentation = manifest, preprocessing, augmentation
        self.batch_size, self.seed, self.sampling = batch_size, seed, sampling
        self.num_workers = min(usable_cores(), MOST_WORKERS) if isinstance(num_workers, str) else num_workers

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        photos = self.manifest.of("train")
        targets = self.manifest.targets(photos)
        dataset = DistortedPhotos(
            self.manifest.files(photos), targets, self.augmentation, self.preprocessing, self.seed
        )
        balanced = self.sampling == "balanced"
        sampler = BalancedShuffle(targets, self.seed) if balanced else EpochShuffle(len(photos), self.seed)
        # A last batch of one photo would give batch norm no variance to work with.
        drop_last = len(sampler) % self.batch_size == 1 and len(sampler) > self.batch_size
        return self._loader(dataset, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        photos = self.manifest.of("val")
        return self._loader(PlainPhotos(self.manifest.files(photos), self.manifest.targets(photos), self.preprocessing))

    def _loader(
        self,
        dataset: Dataset[tuple[Tensor, int]],
        sampler: Sampler[Place] | None = None,
        drop_last: bool = False,
    ) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals_to_the_parent,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; workers that died of them would look like a fault."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _tensor(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    # Pillow's arrays are read-only, which torch warns about; the copy also makes views contiguous
    return torch.from_numpy(np.array(pixels))

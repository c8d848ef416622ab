"""Batches of uint8 photos for training and validation."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest, Photo
from finetune.data.sampling import BalancedShuffle, EpochShuffle, Place, Sampling
from finetune.data.splits import Split
from finetune.parallel import usable_cores
from finetune.preprocess import Pixels

MOST_WORKERS = 8


class PlainPhotos(Dataset[tuple[Tensor, int]]):
    """Photos as they are: (H, W, 3) uint8 and the class number."""

    def __init__(self, photos: Sequence[Pixels], targets: Sequence[int]) -> None:
        self.photos, self.targets = photos, targets

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return _tensor(self.photos[number]), self.targets[number]


class DistortedPhotos(Dataset[tuple[Tensor, int]]):
    """Training photos, distorted anew in every epoch."""

    def __init__(self, photos: Sequence[Pixels], targets: Sequence[int], augmentation: Augmentation, seed: int) -> None:
        """photos: at the stage of the augmentation."""
        self.photos, self.targets = photos, targets
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        """Every part of the place seeds the distortion: it depends on no worker, and a photo drawn twice gets two."""
        _, number, _ = place
        seed = int(np.random.SeedSequence((self.seed, *place)).generate_state(1)[0])
        return _tensor(self.augmentation(self.photos[number], seed)), self.targets[number]


class PhotoData(pl.LightningDataModule):
    """Loaders over a manifest's train and val splits.

    position: the epoch and the batch, both counted from 0, that training stands before; it goes into checkpoints, and
    there the training loader begins.
    """

    def __init__(
        self,
        manifest: Manifest,
        pixels: Mapping[Split, Sequence[Pixels]],
        augmentation: Augmentation,
        batch_size: int,
        num_workers: int | str,
        seed: int,
        sampling: Sampling = "shuffled",
    ) -> None:
        """pixels: the photos of train at the stage of the augmentation, those of val as the server will see them."""
        super().__init__()
        self.manifest, self.pixels, self.augmentation = manifest, pixels, augmentation
        self.batch_size, self.seed, self.sampling = batch_size, seed, sampling
        self.num_workers = min(usable_cores(), MOST_WORKERS) if isinstance(num_workers, str) else num_workers
        self.position = (0, 0)

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self.position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = (state_dict["epoch"], state_dict["batch"])

    @cached_property
    def sampler(self) -> EpochShuffle:
        """The order of the training photos."""
        targets = self.manifest.targets(self.manifest.of("train"))
        if self.sampling == "balanced":
            return BalancedShuffle(targets, self.seed)
        return EpochShuffle(len(targets), self.seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        targets = self.manifest.targets(self.manifest.of("train"))
        dataset = DistortedPhotos(self.pixels["train"], targets, self.augmentation, self.seed)
        epoch, batch = self.position
        # here and not by Lightning, which has workers load before it says which epoch it is
        self.sampler.resume(epoch, batch * self.batch_size)
        # A last batch of one photo would give batch norm no variance to work with.
        drop_last = len(self.sampler) % self.batch_size == 1 and len(self.sampler) > self.batch_size
        return self._loader(dataset, sampler=self.sampler, drop_last=drop_last)

    def photos_of(self, epoch: int, batch: int) -> list[Photo]:
        """Return the photos of a training batch, in its order; epoch and batch are counted from 0."""
        first = batch * self.batch_size
        places = self.sampler.places(epoch)[first : first + self.batch_size]
        photos = self.manifest.of("train")
        return [photos[number] for _, number, _ in places]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        photos = self.manifest.of("val")
        return self._loader(PlainPhotos(self.pixels["val"], self.manifest.targets(photos)))

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

"""Batches of uint8 photos for training and validation."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest, Photo
from finetune.data.sampling import BalancedShuffle, EpochShuffle, Place, Sampling, Share, SharedBatches
from finetune.data.splits import Split
from finetune.parallel import usable_cores
from finetune.preprocess import Pixels

MOST_WORKERS = 8
ALL = Share()


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
        share: Share = ALL,
    ) -> None:
        """pixels: the photos of train at the stage of the augmentation, those of val as the server will see them.

        batch_size: photos of a step, of which this process takes its share.
        """
        super().__init__()
        self.manifest, self.pixels, self.augmentation = manifest, pixels, augmentation
        self.batch_size, self.seed, self.sampling, self.share = batch_size, seed, sampling, share
        self.num_workers = loading_workers(num_workers)
        self.position = (0, 0)
        self.loaders: list[DataLoader[tuple[Tensor, int]]] = []

    def of(self, share: Share, num_workers: int | None = None) -> PhotoData:
        """Return the same photos for one of several processes."""
        workers = self.num_workers if num_workers is None else num_workers
        taken = (self.manifest, self.pixels, self.augmentation, self.batch_size, workers, self.seed, self.sampling)
        return PhotoData(*taken, share)

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

    @cached_property
    def batches(self) -> SharedBatches:
        """The training photos of each batch."""
        return SharedBatches(self.sampler, self.batch_size, self.share)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        targets = self.manifest.targets(self.manifest.of("train"))
        dataset = DistortedPhotos(self.pixels["train"], targets, self.augmentation, self.seed)
        epoch, batch = self.position
        # here and not by Lightning, which has workers load before it says which epoch it is
        self.sampler.resume(epoch, batch * self.batch_size)
        return self._loader(dataset, batch_sampler=self.batches)

    def photos_of(self, epoch: int, batch: int) -> list[Photo]:
        """Return the photos of a training batch, in its order; epoch and batch are counted from 0."""
        first = batch * self.batch_size
        places = self.sampler.places(epoch)[first : first + self.batch_size]
        photos = self.manifest.of("train")
        return [photos[number] for _, number, _ in places]

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        photos = self.manifest.of("val")
        dataset = PlainPhotos(self.pixels["val"], self.manifest.targets(photos))
        own = Subset(dataset, self.share.all_of(len(photos)))
        return self._loader(own, batch_size=ceil(self.batch_size / self.share.size))

    def _loader(self, dataset: Dataset[tuple[Tensor, int]], **batching: Any) -> DataLoader[tuple[Tensor, int]]:
        loader = DataLoader(
            dataset,
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals_to_the_parent,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **batching,
        )
        self.loaders.append(loader)
        return loader

    def stop_workers(self) -> None:
        """End the processes that load photos.

        After an error its traceback holds the loaders, and Python would wait at its end for workers that ignore the
        signal it sends them.
        """
        for loader in self.loaders:
            if loader._iterator is not None and self.num_workers:
                loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def loading_workers(configured: int | str, loaders: int = 1) -> int:
    """Return how many processes load photos for each of the loaders that share this machine."""
    if isinstance(configured, str):
        return max(1, min(usable_cores() // loaders, MOST_WORKERS))
    return configured


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; workers that died of them would look like a fault."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _tensor(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    # Pillow's arrays are read-only, which torch warns about; the copy also makes views contiguous
    return torch.from_numpy(np.array(pixels))

"""How many photos a second two workers deliver for training, against torchvision and timm.

    python benchmarks/loader.py

The same work for all: decode, a random crop of half the area or more, resized to 224 px with a low pass, mirrored at
random, in batches of uint8. Photos: sample photos (250 px), and 12-megapixel mosaics of them. The loaders take turns,
so that what else the machine does meets all of them. Exits 1 where one of the others is ahead.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from conformal_clip_data import textile_simulated_root
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from timm.data import create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from finetune.config import AugmentConfig, SourceConfig
from finetune.data.audit import audit
from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import PhotoData
from finetune.data.manifest import Manifest
from finetune.data.pixels import Cache, take_pixels
from finetune.manual import conf_dir
from finetune.preprocess import Preprocessing

IMAGE_SIZE, WORKERS, TURNS = 224, 2, 5
AREA = (0.5, 1.0)
MOSAIC_PX = (4000, 3000)

# Given a folder of photos and a batch size; its loaders deliver every photo once each time they are asked.
Peer = Callable[[Path, int], Iterable[object]]


def main() -> int:
    # advice on worker counts; two are what is compared
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with tempfile.TemporaryDirectory() as folder:
        ahead = [
            compare("250 px", write_samples(Path(folder, "small"), 1000), 32),
            compare("12 megapixels", write_mosaics(Path(folder, "large"), 64), 8),
        ]
    return int(not all(ahead))


def compare(title: str, root: Path, batch_size: int) -> bool:
    """Print photos a second of each loader; returns whether ours is ahead of the others."""
    loaders = {name: peer(root, batch_size) for name, peer in PEERS.items()}
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(TURNS + 1):
        for name, loader in loaders.items():
            started = time.perf_counter()
            count = sum(len(batch[0]) for batch in loader)  # type: ignore[index]
            if turn > 0:  # the first one starts the workers
                rates[name].append(count / (time.perf_counter() - started))
    median = {name: float(np.median(rate)) for name, rate in rates.items()}
    slowest = min(median.values())
    print(f"{f'{title}, {WORKERS} workers':<28}{'photos/s':>10}{'times the slowest':>20}")
    for name, rate in median.items():
        print(f"{name:<28}{rate:>10.0f}{rate / slowest:>20.1f}", flush=True)
    return all(median[OURS] > rate for name, rate in median.items() if not name.startswith("finetune"))


def of_torchvision(root: Path, batch_size: int) -> Iterable[object]:
    steps = [v2.RandomResizedCrop(IMAGE_SIZE, AREA, interpolation=InterpolationMode.BICUBIC, antialias=True)]
    transform = v2.Compose([*steps, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    photos = ImageFolder(str(root / "train"), transform)
    return DataLoader(photos, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def of_timm(root: Path, batch_size: int) -> Iterable[object]:
    loader = create_loader(
        ImageFolder(str(root / "train")),
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=batch_size,
        is_training=True,
        scale=AREA,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    # what normalises on the device stays out, as ours does that in the network
    inner: Iterable[object] = loader.loader
    return inner


def of_finetune(cache: Cache) -> Peer:
    def loader(root: Path, batch_size: int) -> Iterable[object]:
        preprocessing = Preprocessing(image_size=IMAGE_SIZE, fit="squash")
        augmentation = Augmentation(augment(), preprocessing, None)
        manifest = manifest_of(root)
        pixels = take_pixels(cache, manifest, {"train": augmentation.stage}, root / "kept")
        return Epochs(PhotoData(manifest, pixels, augmentation, batch_size, WORKERS, 0).train_dataloader())

    return loader


class Epochs:
    """A loader that goes on to another epoch each time, as Lightning makes it do."""

    def __init__(self, loader: DataLoader[tuple[torch.Tensor, int]]) -> None:
        self.loader, self.epoch = loader, 0

    def __iter__(self) -> Iterator[object]:
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        self.epoch += 1
        return iter(self.loader)


OURS = "finetune, cache=none"
PEERS: dict[str, Peer] = {
    "torchvision ImageFolder": of_torchvision,
    "timm create_loader": of_timm,
    OURS: of_finetune("none"),
    "finetune, cache=ram": of_finetune("ram"),
    "finetune, cache=disk": of_finetune("disk"),
}


def augment() -> AugmentConfig:
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        words = ["augment=none", f"augment.crop_area={list(AREA)}", "augment.horizontal_flip=0.5"]
        composed = compose("train", words)
    return AugmentConfig.model_validate(OmegaConf.to_container(composed.augment, resolve=True))


def manifest_of(root: Path) -> Manifest:
    values = yaml.safe_load((conf_dir() / "source.yaml").read_text())
    config = SourceConfig.model_validate({**values, "root": str(root), "near_duplicates": None})
    return audit(config, 0).require_trainable()


def samples() -> list[Path]:
    return sorted(textile_simulated_root().rglob("*.jpg"))


def write_samples(root: Path, count: int) -> Path:
    """Write train/CLASS/N.jpg of two classes; one photo a class validates, as ours needs it."""
    for number, path in enumerate(samples()[: count + 2]):
        place(root, number, count).write_bytes(path.read_bytes())
    return root


def write_mosaics(root: Path, count: int) -> Path:
    """Write photos as a camera does, of 4000x3000 px, each laid of other samples."""
    generator = np.random.default_rng(0)
    tiles = [Image.open(path).convert("RGB") for path in samples()[:200]]
    for number in range(count + 2):
        mosaic = Image.new("RGB", MOSAIC_PX)
        for left in range(0, MOSAIC_PX[0], 250):
            for top in range(0, MOSAIC_PX[1], 250):
                mosaic.paste(tiles[generator.integers(len(tiles))], (left, top))
        mosaic.save(place(root, number, count), quality=90)
    return root


def place(root: Path, number: int, count: int) -> Path:
    path = root / ("train" if number < count else "val") / f"class {number % 2}" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())

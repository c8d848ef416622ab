"""The frozen backbone, run once over the photos; its features are kept for every run that asks for the same ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.config import ProbeConfig
from finetune.cores import at_work
from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest, Photo
from finetune.data.pixels import load
from finetune.errors import FinetuneError
from finetune.files import digest
from finetune.models.backbone import Backbone, BackboneSpec, FeatureSet
from finetune.models.classifier import Normalise
from finetune.models.graph import INPUT, quick_graph
from finetune.parallel import ordered_map, usable_cores
from finetune.preprocess import Pixels, Preprocessing, Readable, load_pixels
from finetune.progress import track
from finetune.runtime import open_session
from finetune.training.feature_store import FeatureStore, make_room
from finetune.training.timing import Cost

log = logging.getLogger(__name__)

Features = NDArray[np.float32]
GPU_BATCH = 64
# Of a batch, so that memory suffices at large sizes too.
GPU_PIXELS = 64 * 448**2
# Rows that are written together; what a kill costs at most.
WRITTEN_TOGETHER = 64
# Batches, or photos of a core, that are timed to tell how long a pass will take.
TIMED = 3


class Views(NamedTuple):
    """Distorted copies of photos; described: all that decides their pixels but the photo and the copy's number."""

    augmentation: Augmentation
    seed: int
    described: str


class KeptFeatures:
    """Features of photos by one backbone at one image size, kept by weights, preprocessing and the photos' content."""

    def __init__(
        self,
        spec: BackboneSpec,
        backbone: Backbone,
        preprocessing: Preprocessing,
        device: torch.device,
        folder: Path,
        views: Views | None = None,
    ) -> None:
        """folder: where all features are kept, each kind in a folder of its own; views: what `of_view` distorts by.

        photo_s: seconds that a photo took the last time, decoded and computed; None before. computed_s: of all so far.
        """
        self.spec, self.preprocessing, self.device, self.views = spec, preprocessing, device, views
        self.module = _Everything(spec, backbone).eval()
        arithmetic = "float16" if device.type == "cuda" else "onnxruntime"
        made_by = (arithmetic, *(version(package) for package in ("finetune-service", "timm", "pillow")))
        columns = repr([(features, backbone.columns(features)) for features in backbone.feature_sets])
        key = digest(spec.name, _weights_digest(self.module), preprocessing.model_dump_json(), columns, *made_by)
        self.store = FeatureStore(folder / key[:32], backbone.widest)
        self.photo_s: float | None = None
        self.computed_s = 0.0
        self._run: Callable[[NDArray[np.uint8]], Features] | None = None

    @property
    def backbone(self) -> Backbone:
        return self.module.backbone

    def of(self, manifest: Manifest, photos: Sequence[Photo], features: FeatureSet) -> Features:
        """Return (N, width of the feature set), computing only what was not computed before."""
        keys = [bytes.fromhex(photo.sha256) for photo in photos]
        self._complete(keys, manifest.files(photos), lambda number, file: load_pixels(file, self.preprocessing))
        return self.store.gather(keys, self.backbone.columns(features))

    def of_view(self, manifest: Manifest, photos: Sequence[Photo], view: int, features: FeatureSet) -> Features:
        """Return (N, width of the feature set) of a distorted copy of each photo; view: its number, from 0."""
        keys = self._view_keys(photos, view)
        self._complete(keys, manifest.files(photos), partial(self._distorted, keys))
        return self.store.gather(keys, self.backbone.columns(features))

    def missing(self, photos: Sequence[Photo]) -> int:
        """Return how many of the photos would have to be computed."""
        return len(self.store.missing([bytes.fromhex(photo.sha256) for photo in photos]))

    def missing_of_view(self, photos: Sequence[Photo], view: int) -> int:
        """Return how many of the distorted copies would have to be computed."""
        return len(self.store.missing(self._view_keys(photos, view)))

    def _view_keys(self, photos: Sequence[Photo], view: int) -> list[bytes]:
        assert self.views is not None
        return [bytes.fromhex(digest(photo.sha256, self.views.described, str(view))) for photo in photos]

    def cost(self, files: Sequence[Readable]) -> Cost:
        """Return what a photo takes, measured on a blank one and on some of those that are to come."""
        blank = self._blank()
        self._compute(blank)
        together = len(blank) * (1 if self._in_batches else usable_cores())
        # the first of every core takes longer
        self._seconds(together, lambda _: blank[0])
        count = TIMED * together
        compute_s = self._seconds(count, lambda _: blank[0])
        some = files[:: max(1, len(files) // count)]
        real_s = self._seconds(count, lambda place: load_pixels(some[place % len(some)], self.preprocessing))
        return Cost(max(0.0, real_s - compute_s), compute_s)

    def _seconds(self, count: int, pixels_of: Callable[[int], Pixels]) -> float:
        started = time.monotonic()
        for _ in self._rows(range(count), pixels_of):
            pass
        return (time.monotonic() - started) / count

    def _complete(
        self, keys: Sequence[bytes], files: Sequence[Readable], pixels_of: Callable[[int, Readable], Pixels]
    ) -> None:
        if not self.store.missing(keys):
            return
        started = time.monotonic()
        with self.store.writing():
            # once each: the same photo may stand in a folder twice
            missing = list({keys[place]: place for place in self.store.missing(keys)}.values())
            self._compute(self._blank())
            began = time.monotonic()
            description = f"features at {self.preprocessing.image_size} px"
            computed = self._rows(missing, lambda place: pixels_of(place, files[place]))
            rows = iter(track(computed, description, total=len(missing)))
            places = iter(missing)
            while together := list(islice(rows, WRITTEN_TOGETHER)):
                self.store.add([keys[place] for place in islice(places, len(together))], np.stack(together))
            self.photo_s = (time.monotonic() - began) / max(1, len(missing))
        self.computed_s += time.monotonic() - started

    def _rows(self, places: Sequence[int], pixels_of: Callable[[int], Pixels]) -> Iterator[Features]:
        """Yield each photo's features (width,) in order; on a CPU each core decodes and computes a photo of its own."""
        if not self._in_batches:
            yield from ordered_map(lambda place: self._alone(place, pixels_of), places)
            return
        pixels = ordered_map(pixels_of, places)
        while batch := list(islice(pixels, self._batch)):
            yield from self._compute(np.stack(batch))

    def _alone(self, place: int, pixels_of: Callable[[int], Pixels]) -> Features:
        with at_work():
            row: Features = self._compute(pixels_of(place)[None])[0]
        return row

    def _blank(self) -> NDArray[np.uint8]:
        size = self.preprocessing.image_size
        return np.zeros((self._batch, size, size, 3), np.uint8)

    @property
    def _in_batches(self) -> bool:
        return self.device.type == "cuda"

    def _distorted(self, keys: Sequence[bytes], place: int, file: Readable) -> Pixels:
        assert self.views is not None
        words = np.frombuffer(keys[place], np.uint32).tolist()
        seed = int(np.random.SeedSequence((self.views.seed, *words)).generate_state(1)[0])
        return self.views.augmentation(load(file, self.views.augmentation.stage), seed)

    @property
    def _batch(self) -> int:
        if not self._in_batches:
            return 1
        return max(1, min(GPU_BATCH, GPU_PIXELS // self.preprocessing.image_size**2))

    def _compute(self, images: NDArray[np.uint8]) -> Features:
        if self._run is None:
            self._run = self._on_gpu() if self._in_batches else self._on_cpu()
        features = self._run(images)
        if not np.isfinite(features).all():
            raise FinetuneError(
                f"{self.spec.name} at {self.preprocessing.image_size} px gives features that are not finite numbers; "
                "its weights are damaged or it overflows half precision: use trainer.accelerator=cpu or other weights"
            )
        return features

    def _on_cpu(self) -> Callable[[NDArray[np.uint8]], Features]:
        """onnxruntime is several times as fast as torch here."""
        graph = quick_graph(self.module, self.preprocessing.image_size, output="features")
        session = open_session(graph, device="cpu").ort
        return lambda images: session.run(None, {INPUT: images})[0]

    def _on_gpu(self) -> Callable[[NDArray[np.uint8]], Features]:
        module = self.module.to(self.device).to(memory_format=torch.channels_last)

        def run(images: NDArray[np.uint8]) -> Features:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.float16):
                features: Features = module(torch.from_numpy(images).to(self.device)).float().cpu().numpy()
            return features

        return run


def feature_folder(config: ProbeConfig) -> Path:
    """Return where features are kept between runs, in which older ones have made room."""
    kept = platformdirs.user_cache_path("finetune-service", appauthor=False) / "features"
    folder = kept if config.cache == "auto" else Path(config.cache)
    make_room(folder, config.cache_gb * 1e9)
    return folder


class _Everything(nn.Module):
    def __init__(self, spec: BackboneSpec, backbone: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone.everything(self.normalise(images))


def _weights_digest(module: nn.Module) -> str:
    parts: list[str | bytes] = []
    for name, tensor in module.state_dict().items():
        parts += [name, tensor.detach().cpu().contiguous().numpy().tobytes()]
    return digest(*parts)

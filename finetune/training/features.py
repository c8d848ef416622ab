"""The frozen backbone, run once over the photos; its features are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.manifest import Manifest, Photo
from finetune.files import digest, replacing
from finetune.models.backbone import Backbone, BackboneSpec, FeatureSet
from finetune.models.classifier import Normalise
from finetune.models.graph import INPUT, quick_graph
from finetune.parallel import ordered_map
from finetune.preprocess import Pixels, Preprocessing, Readable, load_pixels
from finetune.progress import track
from finetune.runtime import open_session

log = logging.getLogger(__name__)

Features = NDArray[np.float32]
# On a CPU the activations of a few photos stay in the cache; at 448 px, 16 at a time run at half the speed of 4.
CPU_BATCH, GPU_BATCH = 4, 64


class KeptFeatures:
    """Features of photos by one backbone at one image size, kept in a folder by what they were computed from."""

    def __init__(
        self, spec: BackboneSpec, backbone: Backbone, preprocessing: Preprocessing, device: torch.device, folder: Path
    ) -> None:
        self.preprocessing, self.device, self.folder = preprocessing, device, folder
        self.module = _AllFeatures(spec, backbone).eval()
        self.weights = _weights_digest(self.module)
        self._run: Callable[[NDArray[np.uint8]], Features] | None = None

    def columns(self, features: FeatureSet) -> slice:
        """Where a feature set lies among the columns that `of` returns."""
        return self.module.backbone.columns(features)

    def of(self, manifest: Manifest, photos: Sequence[Photo], purpose: str) -> Features:
        """Return (N, F) float32, computing only what was not computed before."""
        key = digest(self.weights, self.preprocessing.model_dump_json(), *(photo.sha256 for photo in photos))
        kept = self.folder / f"{key[:32]}.npy"
        if kept.is_file():
            stored: Features = np.load(kept)
            return stored
        description = f"features of {purpose} photos at {self.preprocessing.image_size} px"
        features = np.concatenate(list(self._batches(manifest.files(photos), description)))
        with replacing(kept) as beside:
            np.save(beside, features)
        return features

    def _batches(self, files: Sequence[Readable], description: str) -> Iterator[Features]:
        if self._run is None:
            self._run = self._on_gpu() if self.device.type == "cuda" else self._on_cpu()
        size = GPU_BATCH if self.device.type == "cuda" else CPU_BATCH
        pixels = ordered_map(lambda file: load_pixels(file, self.preprocessing), files)
        shown = iter(track(pixels, description, total=len(files)))
        while batch := list(islice(shown, size)):
            yield self._run(_stack(batch))

    def _on_cpu(self) -> Callable[[NDArray[np.uint8]], Features]:
        """onnxruntime is several times as fast as torch here."""
        graph = quick_graph(self.module, self.preprocessing.image_size, output="features")
        session = open_session(graph, device="cpu").ort
        return lambda images: session.run(None, {INPUT: images})[0]

    def _on_gpu(self) -> Callable[[NDArray[np.uint8]], Features]:
        module = self.module.to(self.device)

        def run(images: NDArray[np.uint8]) -> Features:
            with torch.inference_mode():
                features: Features = module(torch.from_numpy(images).to(self.device)).float().cpu().numpy()
            return features

        return run


class _AllFeatures(nn.Module):
    def __init__(self, spec: BackboneSpec, backbone: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalise(images), "all")
        return features


def _stack(batch: list[Pixels]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(batch))


def _weights_digest(module: nn.Module) -> str:
    parts: list[str | bytes] = []
    for name, tensor in module.state_dict().items():
        parts += [name, tensor.detach().cpu().contiguous().numpy().tobytes()]
    return digest(*parts)

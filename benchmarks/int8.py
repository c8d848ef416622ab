"""Precisions side by side on this machine: tf_efficientnet_lite0 and resnet50, in one run, timed in turns.

python benchmarks/int8.py [IMAGE_SIZE]

lite0 has its ImageNet weights and a head that `finetune train` fits to 200 textile photos a class; accuracy is of 150
others a class, which no fit has seen. resnet50's weights are random, with batch-norm statistics from photos: its
speed means something, its accuracy nothing, so its gate is open.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from conformal_clip_data import textile_simulated_root
from torch import nn

from finetune.cli import run
from finetune.export.graph import exported_graph
from finetune.export.halves import to_bf16, to_fp16, to_mixed
from finetune.export.int8 import search_int8
from finetune.export.photos import pixel_batches
from finetune.export.processor import int8_arithmetic
from finetune.export.variant_table import variant_table
from finetune.export.variants import Gate, choose, measure
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.preprocess import Pixels, Preprocessing

CLASSES = ("global", "local", "nominal")
TRAIN, TEST, CALIBRATION, SAMPLE = 200, 150, 20, 4


def main() -> None:
    image_size = int(sys.argv[1]) if len(sys.argv) > 1 else 224
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = lay_out(folder / "photos")
        compare("tf_efficientnet_lite0", fitted(photos, folder, image_size), photos, image_size, 0.005)
        compare("resnet50", untrained(photos, image_size), photos, image_size, 1.0)


def lay_out(root: Path) -> Path:
    """Copy photos into root/{train,test}/CLASS."""
    for label in CLASSES:
        photos = sorted((textile_simulated_root() / label).glob("*.jpg"))
        random.Random(0).shuffle(photos)
        for split, chosen in (("train", photos[:TRAIN]), ("test", photos[TRAIN : TRAIN + TEST])):
            (root / split / label).mkdir(parents=True)
            for photo in chosen:
                shutil.copyfile(photo, root / split / label / photo.name)
    return root


def files(photos: Path, split: str, per_class: int) -> list[Path]:
    return [path for label in CLASSES for path in sorted((photos / split / label).glob("*.jpg"))[:per_class]]


def preprocessing(image_size: int) -> Preprocessing:
    return Preprocessing(image_size=image_size, fit="squash")


def fitted(photos: Path, folder: Path, image_size: int) -> onnx.ModelProto:
    """Train and export as anybody would."""
    train = ["train", f"data.root={photos}", f"output={folder / 'run'}", f"data.image_size={image_size}"]
    export = ["export", f"run={folder / 'run'}", f"output={folder / 'models'}", "name=lite0"]
    for command in (train, export):
        if run(command) != 0:
            raise SystemExit(f"{command[0]} failed")
    return onnx.load(folder / "models/lite0/1/model.onnx")


def untrained(photos: Path, image_size: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    backbone, _ = build_backbone("resnet50", image_size, "none")
    classifier = Classifier(describe_backbone("resnet50"), backbone, "last", len(CLASSES))
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for batch in pixel_batches(files(photos, "train", SAMPLE), preprocessing(image_size)):
            classifier.train()(torch.from_numpy(batch))
    return exported_graph(classifier.eval(), image_size)[0]


def compare(name: str, fp32: onnx.ModelProto, photos: Path, image_size: int, max_accuracy_loss: float) -> None:
    """Make every precision of a graph, and print them side by side."""
    load = partial(pixel_batches, preprocessing=preprocessing(image_size))
    calibration, sample = files(photos, "train", CALIBRATION), files(photos, "train", SAMPLE)
    test = files(photos, "test", TEST)
    targets = [CLASSES.index(path.parent.name) for path in test]
    gate = Gate(fp32, partial(load, test), targets, "cpu", max_accuracy_loss)
    began = time.perf_counter()
    found = search_int8(fp32, load(calibration), whole(load(sample)), int8_arithmetic(), gate.accepts)
    print(
        f"\n{name} at {image_size} px: {len(found.in_float)} of {found.layers} layers in float, "
        f"searched in {time.perf_counter() - began:.0f} s"
    )
    graphs = {"fp32": fp32, "fp16": to_fp16(fp32), "mixed": to_mixed(fp32, load(sample)), "bf16": to_bf16(fp32)}
    variants = measure({**graphs, "int8": found.proto}, gate)
    print(variant_table(variants))
    print(f"precision=auto: {choose(variants, 'auto')[1]}", flush=True)


def whole(batches: Iterable[Pixels]) -> Pixels:
    return np.concatenate(list(batches))


if __name__ == "__main__":
    main()

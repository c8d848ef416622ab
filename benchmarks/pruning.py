"""How accurate, small and fast networks are without the channels that matter least, on a CPU.

    python benchmarks/pruning.py [TURNS]

Accuracy: tf_efficientnet_lite0 at 128 px with a linear head fitted to 60 textile photos a class, on 100 others a class.
Speed: the same and resnet50 (random weights) at 224 px, 4 photos at a time; TURNS (5) of each in turn. `no blocks`:
channels taken out one by one, which shows what whole blocks are for.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import graphs
import numpy as np
import onnx
import torch
from conformal_clip_data import textile_simulated_root

import finetune.export.blocks as blocks
from finetune.export.graph import exported_graph
from finetune.export.photos import pixel_batches
from finetune.export.pruning import Pruner
from finetune.export.variants import Gate
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.preprocess import Preprocessing
from finetune.runtime import open_session

IMAGE_SIZE = 128
CLASSES = ("global", "local", "nominal")
TRAIN, TEST = 60, 100
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.7)
STEPS = 300


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    show_accuracies()
    for name in graphs.NETWORKS:
        show_rates(name, turns)


def show_accuracies() -> None:
    load = partial(pixel_batches, preprocessing=Preprocessing(image_size=IMAGE_SIZE, fit="squash"))
    train, test = files(0, TRAIN), files(TRAIN, TEST)
    whole = fitted(np.concatenate(list(load(train))), numbers(train))
    gate = Gate(whole, partial(load, test), numbers(test), "cpu")
    pruner = Pruner(whole, load(train))
    print(f"accuracy whole: {100 * gate.score(whole).accuracy:.1f} %, {whole.ByteSize() / 1e6:.2f} MB", flush=True)
    for share in (0, *SHARES):
        pruned = pruner.without(share)
        accuracy = 100 * gate.score(pruned.proto).accuracy
        left = f"{pruned.removed:,} of {pruned.before:,} filters gone, {pruned.proto.ByteSize() / 1e6:.2f} MB"
        print(f"accuracy without {share:g}: {accuracy:.1f} %, {left}", flush=True)


def files(start: int, count: int) -> list[Path]:
    folders = (Path(textile_simulated_root(), label) for label in CLASSES)
    return [path for folder in folders for path in sorted(folder.glob("*.jpg"))[start : start + count]]


def numbers(paths: list[Path]) -> list[int]:
    return [CLASSES.index(path.parent.name) for path in paths]


def fitted(photos: np.ndarray, targets: list[int]) -> onnx.ModelProto:
    """Return the graph of the pretrained network with a head that is fitted to photos."""
    torch.manual_seed(0)
    backbone, _ = build_backbone("tf_efficientnet_lite0", IMAGE_SIZE, "auto")
    classifier = Classifier(describe_backbone("tf_efficientnet_lite0"), backbone, "all", len(CLASSES)).eval()
    with torch.no_grad():
        parts = torch.from_numpy(photos).split(16)
        features = torch.cat([classifier.backbone(classifier.normalise(part), "all") for part in parts])
    optimiser = torch.optim.AdamW(classifier.head.parameters(), lr=1e-2, weight_decay=1.0)
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(classifier.head(features), torch.tensor(targets))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return exported_graph(classifier, IMAGE_SIZE)[0]


def show_rates(name: str, turns: int) -> None:
    whole, images = graphs.export(name), graphs.photos(4)
    pruner = Pruner(whole, [images])
    protos = {"whole": whole} | {f"share {share:g}": pruner.without(share).proto for share in (0.25, 0.5)}
    blocks.BLOCK = 1
    protos["share 0.25, no blocks"] = Pruner(whole, [images]).without(0.25).proto
    blocks.BLOCK = 8
    sessions = {key: open_session(proto.SerializeToString(), "cpu").ort for key, proto in protos.items()}
    rates = graphs.relative_rates(sessions, images, turns)
    for key, proto in protos.items():
        print(f"{name:<24}{key:<24}{proto.ByteSize() / 1e6:>8.2f} MB{rates[key]:>8.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()

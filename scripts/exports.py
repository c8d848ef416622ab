"""Write docs/exports.md: how closely the exported graph of each of timm's modules agrees with torch.

    python scripts/exports.py benchmarks/results/exports.jsonl > docs/exports.md

Takes an hour or two on two cores; what is in the file already is not done again. `tests/export/test_exports.py` makes a
sample of the table anew.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.errors import FinetuneError
from finetune.export.graph import exported_graph
from finetune.models.backbone import FeatureSet, build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.runtime import open_session

TEXT = """# Exported architectures

The smallest architecture of each of timm's {count} modules is trained for one step on four photos, exported, and asked
in onnxruntime on a CPU at batch sizes 1, 2, 7 and 32: the largest difference of any probability from torch, for a head
on the last layer's features and for one on those of every stage. The limit that a bundle has to keep is 1e-4. Weights
are random but for that step, and heads are scaled, up to five times, until photos get unlike answers.{missing}

Written by `python scripts/exports.py benchmarks/results/exports.jsonl > docs/exports.md`, which goes on with what is
not in that file yet; `tests/export/test_exports.py` makes a part of it anew.

| timm's module | smallest architecture | px | nodes | last layer | every stage |
| --- | --- | --- | --- | --- | --- |
"""

TABLE = Path(__file__).parents[1] / "docs/architectures.md"
# Where an architecture takes them, small photos take less time.
SIZES_PX = (64, 84, 96, 128, 192, 224, 256)
BATCH_SIZES = (1, 2, 7, 32)
HEADS: tuple[FeatureSet, ...] = ("last", "all")
CLASSES = 5
LARGEST_SCALE = 5
# Millions of parameters. Of 400, training and exporting take 18 GB, which two at once would not find.
LARGE = 100


def main() -> None:
    kept = Path(sys.argv[1])
    done = {(row["module"], row["head"]) for row in _rows(kept)}
    wanted = [(module, name, head) for module, name in smallest().items() for head in HEADS]
    missing = [item for item in wanted if (item[0], item[2]) not in done]
    large = [item for item in missing if parameters()[item[0]] > LARGE]
    for workers, items in ((2, [item for item in missing if item not in large]), (1, large)):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, kept.open("a") as file:
            for row in pool.map(_measured, items):
                print(row, file=sys.stderr, flush=True)
                file.write(json.dumps(row) + "\n")
                file.flush()
    rows = {(row["module"], row["head"]): row for row in _rows(kept)}
    show(rows)


def show(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print the document, with the modules that are there in both ways."""
    whole = [module for module in smallest() if all((module, head) in rows for head in HEADS)]
    left = len(smallest()) - len(whole)
    missing = f" Of {left} modules the figures are not there yet." if left else ""
    print(TEXT.format(count=len(smallest()), missing=missing), end="")
    for module in whole:
        print(line(*(rows[module, head] for head in HEADS)))


def line(last: dict[str, Any], every: dict[str, Any]) -> str:
    """Return a module's line of the table, from its row of each head."""
    cells = [row["error"].replace("|", "\\|") if "error" in row else f"{row['largest']:.0e}" for row in (last, every)]
    size = next((f"{row['image_size']} | {row['nodes']}" for row in (last, every) if "nodes" in row), " | ")
    return f"| {last['module']} | {last['name']} | {size} | {' | '.join(cells)} |"


def smallest() -> dict[str, str]:
    """Return timm's modules, each with its smallest architecture."""
    return {cells[0]: cells[1] for cells in _architectures()}


def parameters() -> dict[str, float]:
    """Return the millions of parameters of each module's smallest architecture."""
    return {cells[0]: float(cells[2].removesuffix(" M")) for cells in _architectures()}


def _architectures() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")][2:]
    return [line.removeprefix("| ").split(" | ") for line in lines]


def _rows(kept: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []


def _measured(item: tuple[str, str, FeatureSet]) -> dict[str, Any]:
    torch.set_num_threads(1)
    module, name, head = item
    row = {"module": module, "name": name, "head": head}
    try:
        return row | measure(name, head)
    except Exception as error:  # the table says what cannot be exported
        return row | {
            "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        }


def measure(name: str, head: FeatureSet) -> dict[str, Any]:
    """Train one step, export, and compare; returns the size, the nodes and the largest difference of a probability."""
    classifier, photos = trained(name, head)
    size = photos.shape[1]
    graph, _ = exported_graph(classifier, size)
    session = open_session(graph.SerializeToString(), device="cpu", threads=1).ort
    with torch.no_grad():
        wanted = torch.cat([classifier.probabilities(part) for part in photos.split(8)]).numpy()
    differences = []
    for count in BATCH_SIZES:
        (found,) = session.run(None, {"images": photos[:count].numpy()})
        differences.append(float(np.abs(found - wanted[:count]).max()))
    return {
        "image_size": size,
        "nodes": len(graph.graph.node),
        "megabytes": graph.ByteSize() / 1e6,
        "largest": max(differences),
        "spread": float(wanted.std(0).mean()),
    }


def trained(name: str, head: FeatureSet) -> tuple[Classifier, Tensor]:
    """Return a network after its step, and photos, of the smallest size that it takes and learns at."""
    spec = describe_backbone(name)
    for size in [*(size for size in SIZES_PX if size < spec.image_size), spec.image_size]:
        torch.manual_seed(0)
        try:
            backbone, _ = build_backbone(name, size, "none")
        except FinetuneError:
            continue
        classifier, photos = Classifier(spec, backbone, head, classes=CLASSES), sketches(max(BATCH_SIZES), size)
        step(classifier, photos[:4])
        spread(classifier, photos[:8])
        # where a single place is left at the end, the step may be so large that answers are no numbers
        if classifier.temperature.isfinite():
            return classifier.eval(), photos
    raise AssertionError(f"{name} learns at none of {SIZES_PX}")


def sketches(count: int, size: int) -> Tensor:
    """Return (count, size, size, 3) uint8 of soft shapes, as unlike each other as photos are."""
    coarse = torch.rand(count, 3, 4, 4) * torch.rand(count, 3, 1, 1) * 255
    soft = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255)
    return soft.permute(0, 2, 3, 1).contiguous().to(torch.uint8)


def step(classifier: Classifier, images: Tensor) -> None:
    """Train all layers one step; batch norms take their statistics from it, as those of a trained network do."""
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of what was seen; by a tenth at a time, little would be left of photos
    classifier.train()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.001)
    nn.functional.cross_entropy(classifier(images), torch.arange(len(images)) % CLASSES).backward()
    optimizer.step()


def spread(classifier: Classifier, images: Tensor) -> None:
    """Shift and scale what the untrained head says, until photos get answers unlike each other.

    Without it no difference would show; scaled more, networks whose untrained features hardly differ between photos
    would show little but rounding errors.
    """
    classifier.eval()
    with torch.no_grad():
        logits = classifier(images)
        classifier.head.linear.bias -= logits.mean(0)
        classifier.temperature.copy_(logits.std(0).mean().clamp(min=1 / LARGEST_SCALE))


if __name__ == "__main__":
    main()

"""What each `imbalance=` is worth on a frozen backbone: 200 textile photos without a defect, 20 of each kind of defect.

python benchmarks/imbalance.py [IMAGE_SIZE] [SEEDS, two or more]

Each seed draws other photos to train on, a fifth of which validates; all are tested on the same 200 of each class. The
folder's proportions are 10 to 1 to 1. The last row is class_weights with its probabilities corrected for them, which is
what would make them those of the folder, at the temperature that suits the test photos best.
"""

from __future__ import annotations

import logging
import random
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from conformal_clip_data import textile_simulated_root
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional

from finetune.config import TrainConfig
from finetune.data.audit import audit
from finetune.evaluation.metrics import balanced_accuracy
from finetune.manual import conf_dir
from finetune.schema import parse
from finetune.training.attempts import Search
from finetune.training.deadline import Deadline
from finetune.training.head_only import fit_head
from finetune.training.imbalance import choose_handling
from finetune.training.search import search_heads
from finetune.training.watching import Watch

# in the order of their class numbers
COUNTS = {"global": 20, "local": 20, "nominal": 200}
TEST_PHOTOS = 200
METHODS = ("none", "class_weights", "balanced_sampler", "focal")
CORRECTED = "class_weights, corrected"


def main() -> None:
    image_size = int(sys.argv[1]) if len(sys.argv) > 1 else 224
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    logging.getLogger("finetune").setLevel(logging.ERROR)
    figures: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            photos = lay_out(Path(folder) / f"photos{seed}", seed)
            for method in METHODS:
                for name, measured in train(photos, Path(folder) / f"{method}{seed}", method, image_size, seed):
                    figures[name].append(measured)
    print(f"at {image_size} px, mean of {seeds} seeds, +- their standard deviation")
    columns = ("balanced accuracy", "accuracy", "nominal found", "defects found", "log loss")
    print(f"{'':<26}" + "".join(f"{column:>20}" for column in columns))
    for name, rows in figures.items():
        cells = [
            f"{statistics.mean(column):.3f} +- {statistics.stdev(column):.3f}" for column in zip(*rows, strict=True)
        ]
        print(f"{name:<26}" + "".join(f"{cell:>20}" for cell in cells))
    print("accuracy and log loss: in the folder's proportions")


def lay_out(root: Path, seed: int) -> Path:
    """Copy photos into root/{train,test}/CLASS; the test photos are those of every seed."""
    for label, count in COUNTS.items():
        photos = sorted((textile_simulated_root() / label).glob("*.jpg"))
        random.Random(0).shuffle(photos)
        drawn = random.Random(seed + 1).sample(photos[TEST_PHOTOS:], count)
        for split, chosen in (("test", photos[:TEST_PHOTOS]), ("train", drawn)):
            (root / split / label).mkdir(parents=True)
            for photo in chosen:
                shutil.copyfile(photo, root / split / label / photo.name)
    return root


def train(
    photos: Path, output: Path, method: str, image_size: int, seed: int
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Fit a head as `finetune train` does; yields rows of the table."""
    config = configure(photos, output, method, image_size, seed)
    manifest = audit(config.data, seed).require_trainable()
    handling = choose_handling(config.imbalance, "head", [photo.label for photo in manifest.of("train")])
    watch = Watch(output / "metrics.csv", {})
    search = Search(config, handling, manifest, torch.device("cpu"), Deadline.after(config.began, None), watch)
    fitted = fit_head(search_heads(search))
    test = manifest.of("test")
    logits, targets = fitted.score(test), torch.tensor(manifest.targets(test))
    yield method, measure(logits / fitted.classifier.temperature, targets)
    if method == "class_weights":
        temperatures = torch.logspace(-1, 1, 201)
        corrected = [logits / temperature + proportions().log() for temperature in temperatures]
        yield CORRECTED, measure(min(corrected, key=lambda those: log_loss(those, targets)), targets)


def configure(photos: Path, output: Path, method: str, image_size: int, seed: int) -> TrainConfig:
    words = [f"data.root={photos}", f"output={output}", f"imbalance={method}", f"data.image_size={image_size}"]
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [*words, f"seed={seed}"])
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return parse(TrainConfig, {str(key): value for key, value in values.items()})


def measure(logits: Tensor, targets: Tensor) -> tuple[float, ...]:
    """Return a row of the table: logits are those that the probabilities come from."""
    answers = logits.argmax(1)
    recalls = torch.stack([(answers[targets == k] == k).double().mean() for k in range(len(COUNTS))])
    return (
        balanced_accuracy(answers, targets),
        float(recalls @ proportions().double()),
        recalls[2].item(),
        recalls[:2].mean().item(),
        log_loss(logits, targets),
    )


def log_loss(logits: Tensor, targets: Tensor) -> float:
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return sum((share * losses[targets == number].mean()).item() for number, share in enumerate(proportions()))


def proportions() -> Tensor:
    return torch.tensor(list(COUNTS.values())) / sum(COUNTS.values())


if __name__ == "__main__":
    main()

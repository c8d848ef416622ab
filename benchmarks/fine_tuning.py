"""Photos a second of full fine-tuning, the time to the first step, and memory: Lightning here, a bare loop, fastai.

    python benchmarks/fine_tuning.py [--turns 3] [--backbone NAME] [--batch 32] [--bf16] [--without fastai]

Each way trains all of a network, with random weights, on the same textile photos, 200 of each class, 224 px, in a
process of its own, in turns. The bare loop has the same network, optimizer, loader and distortions as `finetune train`,
and nothing around them. fastai (`pip install '.[peers]'`) has its own loader and distortions. Where there is a GPU it
is used. The first steps, in which memory is taken and workers start, are not counted.

On a GPU: `--backbone resnet50 --photos-a-class 500 --batch 64 --bf16`, and with `vit_base_patch16_224`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

# fewer in all than an epoch has in batches of 32: the bare loop neither validates nor saves at its end
STEPS, UNTIMED = 10, 4
BEGAN = time.monotonic()


class Enough(BaseException):
    """All steps that are wanted have been timed."""


class Stopwatch:
    """Told when a step begins; raises Enough after the last, of which the beginning ends the one before."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self) -> None:
        self.times.append(time.monotonic())
        if len(self.times) > UNTIMED + STEPS:
            raise Enough

    def told(self, batch: int) -> dict[str, float]:
        import torch

        seconds = self.times[-1] - self.times[UNTIMED]
        own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else own
        return {"photos_s": batch * STEPS / seconds, "first_step_s": self.times[0] - BEGAN, "megabytes": taken / 2**20}


def words_of(given: argparse.Namespace, photos: Path) -> list[str]:
    """Return what `finetune train` is told; the bare loop reads it too."""
    words = [f"data.root={photos}", f"output={photos.parent / 'run'}", "freeze=full", f"data.batch_size={given.batch}"]
    words += [
        f"model.backbone={given.backbone}",
        "model.weights=none",
        "data.image_size=224",
        "trainer.max_epochs=9999",
    ]
    return [*words, *(["trainer.precision=bf16-mixed"] if given.bf16 else [])]


def with_finetune(given: argparse.Namespace, photos: Path, watch: Stopwatch) -> None:
    from finetune.cli import run
    from finetune.training.module import FineTuner

    ordinary = FineTuner.training_step

    def timed(self: FineTuner, *arguments: object) -> object:
        _wait_for_gpu()
        watch.step()
        return ordinary(self, *arguments)  # type: ignore[arg-type]

    FineTuner.training_step = timed  # type: ignore[method-assign,assignment]
    run(["train", *words_of(given, photos)])


def with_a_bare_loop(given: argparse.Namespace, photos: Path, watch: Stopwatch) -> None:
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.config import TrainConfig
    from finetune.data.audit import audit
    from finetune.data.augmentation import Augmentation
    from finetune.data.datamodule import PhotoData
    from finetune.data.pca import colour_components
    from finetune.data.pixels import take_pixels
    from finetune.manual import conf_dir
    from finetune.models.allocator import keep_freed_memory
    from finetune.models.backbone import describe_backbone
    from finetune.schema import parse
    from finetune.training.start import fresh_start

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", words_of(given, photos))
    config = parse(TrainConfig, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    manifest = audit(config.data, config.seed).require_trainable()
    start = fresh_start(config, describe_backbone(config.model.backbone), manifest)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = start.classifier.to(device).to(memory_format=torch.channels_last).train()
    components = colour_components(config.augment, manifest.files(manifest.of("train")))
    augmentation = Augmentation(config.augment, start.preprocessing, components)
    pixels = take_pixels("none", manifest, {"train": augmentation.stage}, photos.parent)
    loader = PhotoData(manifest, pixels, augmentation, given.batch, "auto", config.seed).train_dataloader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.peak)
    for _ in range(1 + (UNTIMED + STEPS) // len(loader)):
        for images, targets in loader:
            _wait_for_gpu()
            watch.step()
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=given.bf16):
                logits = model(images.to(device, non_blocking=True))
                loss = torch.nn.functional.cross_entropy(logits, targets.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()


def with_fastai(given: argparse.Namespace, photos: Path, watch: Stopwatch) -> None:
    from fastai.vision.all import Callback, ImageDataLoaders, Resize, aug_transforms, vision_learner

    class Told(Callback):
        def before_batch(self) -> None:
            if self.training:
                _wait_for_gpu()
                watch.step()

    loaders = ImageDataLoaders.from_folder(
        photos / "train", valid_pct=0.2, seed=0, item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=given.batch
    )
    learner = vision_learner(loaders, given.backbone, pretrained=False, cbs=Told())
    learner = learner.to_bf16() if given.bf16 else learner
    learner.unfreeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(9999)


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


WAYS: dict[str, Callable[[argparse.Namespace, Path, Stopwatch], None]] = {
    "finetune train freeze=full": with_finetune,
    "bare loop": with_a_bare_loop,
    "fastai": with_fastai,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--photos-a-class", type=int, default=200)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--without", action="append", choices=WAYS, default=[])
    # of the processes that this one starts
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--photos", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        watch = Stopwatch()
        try:
            WAYS[given.way](given, given.photos, watch)
        except Enough:
            print(json.dumps(watch.told(given.batch)), flush=True)
        return
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for turn in range(given.turns):
        for way in (way for way in WAYS if way not in given.without):
            measured[way].append(measure(way, given.photos_a_class))
            print(turn, way, measured[way][-1], flush=True)
    show(measured)


def measure(way: str, photos_a_class: int) -> dict[str, float]:
    """Train one way in a process of its own, with the options that this one was given."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        scripts = Path(__file__).parent.parent / "scripts"
        subprocess.run([sys.executable, str(scripts / "sample_data.py"), str(photos), str(photos_a_class)], check=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--photos", str(photos)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def show(measured: dict[str, list[dict[str, float]]]) -> None:
    bare = statistics.median(row["photos_s"] for row in measured["bare loop"])
    print(f"{'':<30}{'photos/s':>10}{'of bare':>10}{'first step':>12}{'MB':>8}")
    for way, rows in measured.items():
        speed, first, memory = (
            statistics.median(row[key] for row in rows) for key in ("photos_s", "first_step_s", "megabytes")
        )
        print(f"{way:<30}{speed:>10.1f}{speed / bare:>10.2f}{first:>10.1f} s{memory:>8.0f}")


if __name__ == "__main__":
    main()

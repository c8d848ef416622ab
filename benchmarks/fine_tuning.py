"""Photos a second of full fine-tuning, the time to the first step, and memory: Lightning here, a bare loop, fastai.

    python benchmarks/fine_tuning.py [TURNS]

Each way trains all of tf_efficientnet_lite0 on the same 200 textile photos of each class, 224 px, 32 at a time, in a
process of its own, in turns, TURNS (3) times. The bare loop has the same network, optimizer, loader and distortions as
`finetune train`, and nothing around them. fastai (`pip install '.[peers]'`) has its own loader and distortions.
The first steps, in which memory is taken and workers start, are not counted.
"""

from __future__ import annotations

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

BATCH, STEPS, UNTIMED = 32, 12, 4
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

    def told(self) -> dict[str, float]:
        seconds = self.times[-1] - self.times[UNTIMED]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"photos_s": BATCH * STEPS / seconds, "first_step_s": self.times[0] - BEGAN, "megabytes": memory}


def with_finetune(photos: Path, watch: Stopwatch) -> None:
    from finetune.cli import run
    from finetune.training.module import FineTuner

    ordinary = FineTuner.training_step

    def timed(self: FineTuner, *arguments: object) -> object:
        watch.step()
        return ordinary(self, *arguments)  # type: ignore[arg-type]

    FineTuner.training_step = timed  # type: ignore[method-assign,assignment]
    run(["train", f"data.root={photos}", f"output={photos.parent / 'run'}", "freeze=full", f"data.batch_size={BATCH}"])


def with_a_bare_loop(photos: Path, watch: Stopwatch) -> None:
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.cli import conf_dir
    from finetune.config import TrainConfig
    from finetune.data.audit import audit
    from finetune.data.augmentation import Augmentation
    from finetune.data.datamodule import PhotoData
    from finetune.data.pca import colour_components
    from finetune.data.pixels import take_pixels
    from finetune.models.allocator import keep_freed_memory
    from finetune.models.backbone import describe_backbone
    from finetune.schema import parse
    from finetune.training.start import fresh_start

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [f"data.root={photos}", "output=run", "freeze=full"])
    config = parse(TrainConfig, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    manifest = audit(config.data, config.seed).require_trainable()
    start = fresh_start(config, describe_backbone(config.model.backbone), manifest)
    keep_freed_memory()
    model = start.classifier.to(memory_format=torch.channels_last).train()
    components = colour_components(config.augment, manifest.files(manifest.of("train")))
    augmentation = Augmentation(config.augment, start.preprocessing, components)
    pixels = take_pixels("none", manifest, {"train": augmentation.stage}, photos.parent)
    loader = PhotoData(manifest, pixels, augmentation, BATCH, "auto", config.seed).train_dataloader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.peak)
    for _ in range(1 + (UNTIMED + STEPS) // len(loader)):
        for images, targets in loader:
            watch.step()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()


def with_fastai(photos: Path, watch: Stopwatch) -> None:
    from fastai.vision.all import Callback, ImageDataLoaders, Resize, aug_transforms, vision_learner

    class Told(Callback):
        def before_batch(self) -> None:
            if self.training:
                watch.step()

    loaders = ImageDataLoaders.from_folder(
        photos / "train", valid_pct=0.2, seed=0, item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=BATCH
    )
    learner = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=False, cbs=Told())
    learner.unfreeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(3)


WAYS: dict[str, Callable[[Path, Stopwatch], None]] = {
    "finetune train freeze=full": with_finetune,
    "bare loop": with_a_bare_loop,
    "fastai": with_fastai,
}


def main() -> None:
    if len(sys.argv) > 2:
        watch = Stopwatch()
        try:
            WAYS[sys.argv[1]](Path(sys.argv[2]), watch)
        except Enough:
            print(json.dumps(watch.told()), flush=True)
        return
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for turn in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                photos = Path(folder) / "photos"
                scripts = Path(__file__).parent.parent / "scripts"
                subprocess.run([sys.executable, str(scripts / "sample_data.py"), str(photos), "200"], check=True)
                command = [sys.executable, __file__, way, str(photos)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
            measured[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(turn, way, measured[way][-1], flush=True)
    bare = statistics.median(row["photos_s"] for row in measured["bare loop"])
    print(f"{'':<30}{'photos/s':>10}{'of bare':>10}{'first step':>12}{'MB':>8}")
    for way, rows in measured.items():
        speed, first, memory = (
            statistics.median(row[key] for row in rows) for key in ("photos_s", "first_step_s", "megabytes")
        )
        print(f"{way:<30}{speed:>10.1f}{speed / bare:>10.2f}{first:>10.1f} s{memory:>8.0f}")


if __name__ == "__main__":
    main()

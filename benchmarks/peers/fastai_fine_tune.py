"""fastai as its tutorial has it, on a folder with train/ and test/: prints {"test_accuracy": ...}.

python benchmarks/peers/fastai_fine_tune.py PHOTOS WEIGHTS.pth EPOCHS SEED

WEIGHTS: tf_efficientnet_lite0's, under timm's names.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, get_image_files, set_seed, vision_learner


def main() -> None:
    warnings.filterwarnings("ignore")
    photos, weights, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_seed(seed, reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        photos / "train", valid_pct=0.2, seed=seed, item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=64
    )
    overlay = {"file": weights, "url": "", "hf_hub_id": None}
    learner = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        files = get_image_files(photos / "test")
        probabilities, _ = learner.get_preds(dl=learner.dls.test_dl(files))
    classes = learner.dls.vocab
    right = [classes[int(row.argmax())] == file.parent.name for row, file in zip(probabilities, files, strict=True)]
    print(json.dumps({"test_accuracy": sum(right) / len(right)}))


if __name__ == "__main__":
    main()

"""A plain training loop over a timm network, on a folder with train/ and test/: prints {"test_accuracy": ...}.

python benchmarks/peers/timm_loop.py PHOTOS WEIGHTS.pth EPOCHS SEED

Everything trains: AdamW, a cosine to zero, timm's own training and test transforms. The last epoch is tested.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

BATCH, RATE, DECAY, WORKERS = 32, 3e-4, 0.05, 2


def main() -> None:
    photos, weights, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(seed)
    classes = len(list((photos / "train").iterdir()))
    overlay = {"file": weights, "url": "", "hf_hub_id": None}
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay
    ).to(memory_format=torch.channels_last)
    data = resolve_model_data_config(model)
    train = ImageFolder(photos / "train", create_transform(**data, is_training=True))
    test = ImageFolder(photos / "test", create_transform(**data))
    loader = DataLoader(train, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for images, targets in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(images.to(memory_format=torch.channels_last)), targets).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    right = 0
    with torch.inference_mode():
        for images, targets in DataLoader(test, BATCH, num_workers=WORKERS):
            right += int((model(images.to(memory_format=torch.channels_last)).argmax(1) == targets).sum())
    print(json.dumps({"test_accuracy": right / len(test)}))


if __name__ == "__main__":
    main()

"""trainer.precision: which arithmetic a device has."""

from __future__ import annotations

import torch

from finetune.errors import FinetuneError


def require_precision(precision: str, device: torch.device) -> None:
    """Raise FinetuneError where a device does not train in this arithmetic; Lightning would take another one."""
    if precision == "16-mixed" and device.type == "cpu":
        raise FinetuneError("trainer.precision=16-mixed needs a GPU; on a CPU use 32-true, or bf16-mixed")
    if precision == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise FinetuneError(f"trainer.precision=bf16-mixed: {name} has no bfloat16; use 16-mixed or 32-true")

"""What this machine's processor does with 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnxruntime.quantization import QuantType

# Dot products of bytes that sum in 32 bits. Without them x86 sums pairs in 16 bits, which 8-bit weights overflow.
VNNI = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


@dataclass(frozen=True)
class Int8Arithmetic:
    """activations: their type, as the fast kernels want it; saturates: weights must have 7 bits, or sums overflow."""

    activations: QuantType
    saturates: bool


def int8_arithmetic() -> Int8Arithmetic:
    """Return what suits this machine's processor, as onnxruntime's guide to quantisation has it.

    A model made on a processor with VNNI loses accuracy on an x86 processor without.
    """
    has = torch.cpu.get_capabilities()
    if has["architecture"] != "x86_64":
        return Int8Arithmetic(QuantType.QInt8, saturates=False)
    return Int8Arithmetic(QuantType.QUInt8, saturates=not any(has.get(name) for name in VNNI))

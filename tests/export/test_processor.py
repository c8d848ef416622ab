from __future__ import annotations

import pytest
import torch
from onnxruntime.quantization import QuantType

from finetune.export.processor import Int8Arithmetic, int8_arithmetic


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True}, Int8Arithmetic(QuantType.QUInt8, saturates=True)),
        ({"architecture": "x86_64", "avx512_vnni": True}, Int8Arithmetic(QuantType.QUInt8, saturates=False)),
        ({"architecture": "x86_64", "avx_vnni": True}, Int8Arithmetic(QuantType.QUInt8, saturates=False)),
        ({"architecture": "aarch64", "dot": True}, Int8Arithmetic(QuantType.QInt8, saturates=False)),
    ],
)
def test_types_suit_the_processor(
    capabilities: dict[str, str | bool], expected: Int8Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert int8_arithmetic() == expected


def test_this_processor_is_known() -> None:
    assert int8_arithmetic().activations in (QuantType.QUInt8, QuantType.QInt8)

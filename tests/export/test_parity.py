from __future__ import annotations

from pathlib import Path

import pytest

from finetune import cores
from finetune.bundle import open_bundle
from finetune.export.parity import BATCH_SIZES, onnx_probabilities
from finetune.preprocess import Pixels, Readable
from finetune.serving.predictor import Predictor, open_predictor


def test_what_decodes_photos_claims_its_core(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 2)
    load, at_work = Predictor.load, []

    def noting(self: Predictor, file: Readable) -> Pixels:
        at_work.append(cores._workers.mine.depth)
        return load(self, file)

    monkeypatch.setattr(Predictor, "load", noting)
    files = [tiny_models.parent / "photos" / "red" / f"{number}.jpg" for number in range(3)]
    rows = onnx_probabilities(predictor, files)
    assert len(rows) == sum(BATCH_SIZES)
    assert at_work == [1] * len(rows)

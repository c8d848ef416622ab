from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.bundle import open_bundle
from finetune.errors import FinetuneError
from finetune.serving.predictor import Predictor, open_predictor, require_room
from tests import gpus


class Seen:
    """Stands between a predictor and its session; counts: how many photos ran together each time."""

    def __init__(self, predictor: Predictor) -> None:
        self._session = predictor.session.ort
        self.counts: list[int] = []

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
        self.counts.append(len(next(iter(inputs.values()))))
        return self._session.run(outputs, inputs)


@pytest.fixture
def predictor(tiny_models: Path) -> Predictor:
    return open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 1)


def on_gpu(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Let it take its processor for a GPU."""
    seen = Seen(predictor)
    monkeypatch.setattr(predictor, "session", replace(predictor.session, ort=seen, provider="cuda"))
    monkeypatch.setattr(predictor, "on_gpu", True)
    return seen


@pytest.mark.parametrize("most", [1, 2, 7, 32, 48])
def test_a_gpu_has_seen_every_number_of_photos_before_it_is_ready(
    most: int, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 1, batch=most)
    seen = on_gpu(predictor, monkeypatch)
    predictor.warm_up()
    warm = set(seen.counts)
    side_px = predictor.preprocessing.image_size
    images = np.random.default_rng(0).integers(0, 256, (most, side_px, side_px, 3), np.uint8)
    alone = np.concatenate([predictor.run(image[None]) for image in images])
    for photos in range(1, most + 1):
        answers = predictor.run(images[:photos])
        np.testing.assert_allclose(answers, alone[:photos], atol=1e-5)
    assert set(seen.counts) == warm


def test_a_processor_runs_what_it_is_given(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(predictor)
    monkeypatch.setattr(predictor, "session", replace(predictor.session, ort=seen))
    side_px = predictor.preprocessing.image_size
    for photos in (1, 3):
        assert predictor.run(np.zeros((photos, side_px, side_px, 3), np.uint8)).shape == (photos, 3)
    assert seen.counts == [1, 3]


def test_more_than_an_engine_was_compiled_for_is_refused() -> None:
    require_room("cpu", 64, "batch.photos")
    require_room("tensorrt", None, "batch.photos")
    require_room("tensorrt", 32, "batch.photos")
    with pytest.raises(FinetuneError, match=r"batch.photos=33 is more than the 32 photos .* use batch.photos=32"):
        require_room("tensorrt", 33, "batch.photos")


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "openvino"])
def test_a_device_that_opens_a_model_and_cannot_run_it_is_refused(
    device: Any, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.install(monkeypatch, before_run=gpus.out_of_memory)
    said = (
        rf"^device={device} does not work here: .* requested buffer of size 3221225472; mend that, or use device=\w+$"
    )
    with pytest.raises(FinetuneError, match=said):
        open_predictor(open_bundle(tiny_models / "tiny"), device, engine_cache=tmp_path)


def test_auto_takes_the_cpu_where_a_gpu_cannot_run_the_model(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.install(monkeypatch, before_run=gpus.out_of_memory)
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "auto")
    assert predictor.session.provider == "cpu"
    assert predictor.session.why.startswith("no CUDA: ")
    assert predictor.session.why.endswith("requested buffer of size 3221225472")
    assert (predictor.on_gpu, predictor.batch_size) == (False, 1)
    size = predictor.preprocessing.image_size
    assert predictor.run(np.zeros((1, size, size, 3), np.uint8)).shape == (1, 3)


def test_what_clients_read_of_tensorrt_names_no_folder(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gpus.install(monkeypatch)
    predictor = open_predictor(open_bundle(tiny_models / "tiny"), "tensorrt", engine_cache=tmp_path)
    assert predictor.session.why == "TensorRT runs what it can, CUDA the rest"
    assert [message for message in caplog.messages if str(tmp_path) in message], "the log does"


@pytest.mark.parametrize(("device", "told"), [("cpu", False), ("cuda", True)])
def test_a_file_that_was_optimised_for_cpus_is_told_of_on_a_gpu(
    device: Any, told: bool, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.install(monkeypatch)
    bundle = open_bundle(tiny_models / "tiny")
    open_predictor(bundle, device)
    assert not caplog.messages
    asked = bundle.info.asked | {"optimised": True}
    open_predictor(replace(bundle, info=bundle.info.model_copy(update={"asked": asked})), device)
    assert ["optimised=true, for CPUs" in message for message in caplog.messages] == [True] * told

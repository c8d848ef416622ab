from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.serving.asking import ask
from finetune.serving.bodies import Patience
from finetune.serving.live import LiveModel, open_live
from finetune.serving.metrics import Metrics
from finetune.serving.placement import Placement
from finetune.serving.routes import Target
from finetune.serving.turns import Turns
from tests.serving.conftest import serve_config


def open_as(name: str, models: Path, cores: Turns, **changed: object) -> LiveModel:
    config = serve_config(models, **changed)
    return open_live(models / "tiny", Target(name, 1), config, Placement(config), cores, Metrics())


async def asked(model: LiveModel, photos: int, answering: Awaitable[Any]) -> None:
    """Ask as an interface does, for a client that does not leave."""
    never = asyncio.get_running_loop().create_future
    await ask(model, photos, answering, Patience(lambda: never(), 60), {})


def test_a_model_with_few_photos_does_not_stand_behind_all_of_another(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores, order, gate = Turns(1), list[str](), threading.Event()
    many, few = (open_as(name, tiny_models, cores) for name in ("many", "few"))
    for model in (many, few):
        run = model.predictor.run

        def told(images: NDArray[np.uint8], name: str = model.name, run: object = run) -> NDArray[np.float32]:
            order.extend([name] * len(images))
            answers: NDArray[np.float32] = run(images)  # type: ignore[operator]
            return answers

        monkeypatch.setattr(model.predictor, "run", told)

    async def test() -> None:
        first = asyncio.ensure_future(cores.run("first", gate.wait, 10))
        await asyncio.sleep(0)
        asked = [asyncio.ensure_future(many.classify([red_photo])) for _ in range(8)]
        await asyncio.sleep(0)
        asked.append(asyncio.ensure_future(few.classify([red_photo] * 2)))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *asked)

    asyncio.run(asyncio.wait_for(test(), 60))
    assert sorted(order) == ["few"] * 2 + ["many"] * 8
    assert order.index("few") < 4
    assert order[-1] == "many"


def test_a_delay_that_changes_nothing_is_told(
    tiny_models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    open_as("tiny", tiny_models, Turns(1), batch={"delay_ms": 5, "photos": 4})
    assert not caplog.messages
    open_as("tiny", tiny_models, Turns(1), batch={"delay_ms": 5})
    assert caplog.messages == ["batch.delay_ms=5 changes nothing as long as batch.photos=1"]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_request_of_several_photos_is_one_in_the_statistics(tiny_models: Path, red_photo: bytes, batch: int) -> None:
    model = open_as("tiny", tiny_models, Turns(1), batch={"photos": batch})
    sent = [red_photo] * 8
    asyncio.run(asked(model, 9, model.classify([*sent, b"no photo"])))
    statistics = model.metrics.statistics()
    parts = statistics["inference_stats"]
    assert statistics["inference_count"] == 8
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert parts[part]["count"] == 1, part
    for part in ("queue", "compute_input", "compute_infer"):
        assert 0 < parts[part]["ns"] < parts["success"]["ns"], "a photo's, not that of all of them"
    asyncio.run(asked(model, 1, model.classify([b"no photo"])))
    parts = model.metrics.statistics()["inference_stats"]
    assert (parts["fail"]["count"], parts["queue"]["count"]) == (1, 1), "as Triton counts"


def test_requests_that_run_together_have_each_the_time_of_their_batch(tiny_models: Path) -> None:
    model = open_as("tiny", tiny_models, Turns(1), batch={"photos": 2, "delay_ms": 1000})
    side_px = model.predictor.preprocessing.image_size
    photo = np.zeros((1, side_px, side_px, 3), np.uint8)

    async def test() -> None:
        await asyncio.gather(*(asked(model, 1, model.run(photo)) for _ in range(2)))

    asyncio.run(test())
    statistics = model.metrics.statistics()
    (together,) = statistics["batch_stats"]
    assert (together["batch_size"], together["compute_infer"]["count"]) == (2, 1)
    assert statistics["inference_stats"]["compute_infer"] == {"count": 2, "ns": 2 * together["compute_infer"]["ns"]}

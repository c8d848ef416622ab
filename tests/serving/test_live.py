from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.serving.live import LiveModel, open_live
from finetune.serving.metrics import Metrics
from finetune.serving.placement import Placement
from finetune.serving.routes import Target
from finetune.serving.turns import Turns
from tests.serving.conftest import serve_config


def open_as(name: str, models: Path, cores: Turns, **changed: object) -> LiveModel:
    config = serve_config(models, **changed)
    return open_live(models / "tiny", Target(name, 1), config, Placement(config), cores, Metrics())


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

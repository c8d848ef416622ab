"""Looks after the open models for as long as the server runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, ThreadPoolExecutor

from finetune.serving import health
from finetune.serving.catalogue import Catalogue
from finetune.serving.metrics import Metrics


async def look_after(catalogue: Catalogue, metrics: Metrics) -> None:
    """Examine what is in doubt, again and again until it answers; raises DeviceError where that is of no use."""
    thread = ThreadPoolExecutor(1, "check-models")
    while True:
        await asyncio.sleep(health.LOOK_S)
        await _look(catalogue, metrics, thread)


async def _look(catalogue: Catalogue, metrics: Metrics, thread: Executor) -> None:
    # a function of its own, as a loop that sleeps would hold the last model though it was unloaded
    for model in catalogue.everything:
        if model.health.doubtful:
            try:
                await model.health.examine(thread)
            finally:
                metrics.ready(catalogue.ready)

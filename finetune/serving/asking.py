"""From a request whose body was read to its rows: what every interface does in the same way."""

from __future__ import annotations

import time
from collections.abc import Awaitable

from starlette.requests import Request

from finetune.errors import ImageError
from finetune.serving.batcher import Probabilities
from finetune.serving.bodies import ClientLeft, while_connected
from finetune.serving.live import LiveModel
from finetune.serving.refusal import Refusal

Row = Probabilities | ImageError


async def ask(
    request: Request, model: LiveModel, photos: int, deadline_s: float, answering: Awaitable[list[Row]]
) -> list[Row]:
    """Return a model's rows for one request, given up when its client leaves or its time is up, and count it.

    Raises ClientLeft, Refusal 503 or 504, or what the model raises.
    """
    request.state.facts.update(model=f"{model.name}/{model.version}", photos=photos)
    began = time.perf_counter()
    try:
        rows = await while_connected(request.receive, deadline_s, answering)
    except ClientLeft:
        model.metrics.failed("CANCELED", time.perf_counter() - began)
        raise
    except Refusal:
        model.metrics.failed("REJECTED", time.perf_counter() - began)
        raise
    except Exception:
        model.metrics.failed("BACKEND", time.perf_counter() - began)
        raise
    readable = sum(not isinstance(row, ImageError) for row in rows)
    if readable:
        model.metrics.succeeded(readable, time.perf_counter() - began)
    else:
        model.metrics.failed("OTHER", time.perf_counter() - began)
    return rows

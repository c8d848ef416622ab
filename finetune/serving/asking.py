"""From a request whose body was read to its rows: what every interface does in the same way."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

from opentelemetry import trace

from finetune.errors import ImageError
from finetune.serving.batcher import Probabilities
from finetune.serving.bodies import ClientLeft, Patience
from finetune.serving.live import LiveModel
from finetune.serving.refusal import Refusal
from finetune.serving.request_times import begin_times

# What a request turned out to be, for its line in the log.
Facts = dict[str, Any]
Row = Probabilities | ImageError


async def ask(
    model: LiveModel, photos: int, answering: Awaitable[list[Row]], patience: Patience, facts: Facts
) -> list[Row]:
    """Return a model's rows for one request, and count it.

    facts: takes what is worth a line in the log. Raises ClientLeft, Refusal 503 or 504, or what the model raises.
    """
    facts.update(model=f"{model.name}/{model.version}", photos=photos)
    # of the span of this request, where there is one
    trace.get_current_span().set_attributes({f"finetune.{name}": value for name, value in facts.items()})
    began, times = time.perf_counter(), begin_times()
    try:
        rows = await patience.wait_for(answering)
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
        model.metrics.succeeded(readable, time.perf_counter() - began, times)
    else:
        model.metrics.failed("OTHER", time.perf_counter() - began)
    return rows

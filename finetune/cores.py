"""onnxruntime models on a processor: one call gets all cores, calls beside each other get a core each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.providers import CPU, SILENT

# after finetune.providers, which switches its telemetry off
import onnxruntime as ort  # isort: skip

# Larger models are opened once: their layers are long, so that waiting for each other costs their threads next to
# nothing, and weights are held for every opening.
MOST_MB = 64


class CpuSession:
    """Runs a model on `threads` cores; safe to call from several threads, which is what fills the cores best.

    The threads of one call wait for each other at every layer. Calls of one thread each wait for nobody and find their
    activations in their own core's cache, so `threads` calls of one photo each do more than one call of several.
    """

    def __init__(self, model: str | bytes, threads: int) -> None:
        """model: a file or its content."""
        size = len(model) if isinstance(model, bytes) else Path(model).stat().st_size
        divides = threads > 1 and size <= 1e6 * MOST_MB
        self._alone = _open(model, _spinning(threads) if divides else _sleeping(threads))
        self._beside = _open(model, _sleeping(1)) if divides else self._alone

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the outputs that are named, or all, as `onnxruntime.InferenceSession.run` does."""
        with at_work() as alone:
            found: list[Any] = (self._alone if alone else self._beside).run(outputs, inputs)
        return found

    def run_each(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[list[Any]]:
        """Return what `run` does alone, and beside other calls: all that it may come to."""
        return [session.run(outputs, inputs) for session in dict.fromkeys((self._alone, self._beside))]


class _Workers:
    """count: threads at work in this process; mine.depth: how often this thread says that it is one of them."""

    def __init__(self) -> None:
        self.lock, self.count, self.mine = threading.Lock(), 0, threading.local()


_workers = _Workers()


@contextmanager
def at_work() -> Iterator[bool]:
    """Claim a core, for a model of any session or for what it waits for; yields whether no other thread has one.

    What decodes photos before it runs them says so, or a run that began meanwhile would take its core.
    """
    mine = _workers.mine
    mine.depth = getattr(mine, "depth", 0) + 1
    if mine.depth == 1:
        with _workers.lock:
            _workers.count += 1
    try:
        yield _workers.count == 1
    finally:
        mine.depth -= 1
        if not mine.depth:
            with _workers.lock:
                _workers.count -= 1


def _open(model: str | bytes, options: Any) -> Any:
    return ort.InferenceSession(model, options, providers=[CPU])


def _spinning(threads: int) -> Any:
    """Threads wait for the next layer in a loop: a fifth of a small model's time won where no other call is."""
    options = session_options()
    options.intra_op_num_threads = threads
    # after the last layer the cores belong to those who decode photos
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _sleeping(threads: int) -> Any:
    """Threads leave their cores to others while they wait for the next layer."""
    options = _spinning(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def session_options() -> Any:
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    return options

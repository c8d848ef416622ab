"""The models a server holds: opened in the background, answering only when all of them are warm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

from starlette.exceptions import HTTPException

from finetune.bundle import Bundle
from finetune.errors import nearest
from finetune.runtime import Device
from finetune.serving.predictor import Predictor, open_predictor

log = logging.getLogger(__name__)


class ServedModel:
    """A bundle and its predictor, run by one thread of its own."""

    def __init__(self, bundle: Bundle, device: Device, threads: int | None, engine_cache: Path | None) -> None:
        self.bundle = bundle
        self.device: Device = device
        self.threads = threads
        self.engine_cache = engine_cache
        # a session uses every core it was given: two runs at once would only slow each other down
        self.thread = ThreadPoolExecutor(1, f"run-{bundle.name}")

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def version(self) -> str:
        return self.bundle.version

    @cached_property
    def predictor(self) -> Predictor:
        return open_predictor(self.bundle, self.device, self.threads, self.engine_cache)

    def describe(self) -> dict[str, Any]:
        card = self.bundle.info.model
        return {
            "name": self.name,
            "version": self.version,
            "labels": card.labels,
            "image_size": card.preprocessing.image_size,
        }


class Served:
    """All models of a server. ready: every one of them has answered on its provider."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        device: Device,
        threads: int | None,
        on_failure: Callable[[Exception], None],
        engine_cache: Path | None = None,
    ) -> None:
        """on_failure: called from the loading thread if a model cannot be opened or run."""
        self.models = [ServedModel(bundle, device, threads, engine_cache) for bundle in bundles]
        self.ready = False
        self._on_failure = on_failure
        self._loading = Thread(target=self._load, name="load-models", daemon=True)

    def start(self) -> None:
        """Open and warm up every model in the background, so that the process can say that it is alive meanwhile."""
        self._loading.start()

    def wait(self) -> None:
        """Return when every model is warm or one has failed."""
        self._loading.join()

    def choose(self, name: str | None) -> ServedModel:
        """Return a model by name, or the only one; raises HTTPException 404 or 400."""
        names = [model.name for model in self.models]
        if name is None:
            if len(self.models) > 1:
                raise HTTPException(400, f"several models are served; add ?model= with one of {', '.join(names)}")
            return self.models[0]
        for model in self.models:
            if model.name == name:
                return model
        raise HTTPException(404, f"no model '{name}'{nearest(name, names)} (served: {', '.join(names)})")

    def _load(self) -> None:
        try:
            for model in self.models:
                model.predictor.warm_up()
                session = model.predictor.session
                log.info("%s version %s is warm on %s (%s)", model.name, model.version, session.provider, session.why)
        except Exception as failure:
            # a thread has no caller to raise to: the server is told, stops, and reports it
            self._on_failure(failure)
        else:
            self.ready = True

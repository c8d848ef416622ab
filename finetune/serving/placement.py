"""Where a server's models run."""

from __future__ import annotations

from dataclasses import replace

from finetune.bundle import Bundle
from finetune.config import ServeConfig
from finetune.serving.predictor import Predictor, open_predictor, require_room


class Placement:
    """Opens models on the device that is asked for; used from one thread.

    `auto` is decided by the first model that answers: a later one for which a GPU has no memory left must not go on,
    unnoticed, at the speed of a processor.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config, self._device = config, config.device
        self._why: str | None = None

    def open(self, bundle: Bundle) -> Predictor:
        """Raises FinetuneError where the device cannot run the model, or what onnxruntime raises."""
        config = self._config
        threads = None if config.threads == "auto" else config.threads
        batch = None if config.batch.photos == "auto" else config.batch.photos
        require_room(self._device, batch, "batch.photos")
        predictor = open_predictor(bundle, self._device, threads, config.engine_cache, config.gpu_memory_mb, batch)
        self._device = predictor.session.provider
        self._why = self._why or predictor.session.why
        predictor.session = replace(predictor.session, why=self._why)
        return predictor

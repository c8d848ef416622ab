"""Whether an open model still answers: after a few failures in a row it is asked a blank photo, which decides."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from finetune.errors import FinetuneError, first_line
from finetune.serving.model_metrics import ModelMetrics
from finetune.serving.predictor import Predictor
from finetune.serving.refusal import Refusal

log = logging.getLogger(__name__)

# So many requests in a row that end in a fault of the model are no matter of one photo any more.
DOUBTED_AFTER = 3
# Between two looks at what is in doubt.
LOOK_S = 1.0


class DeviceError(FinetuneError):
    """A GPU that runs nothing any more; only another process can."""

    exit_code = 1


class Health:
    """One open model's; used from one event loop."""

    def __init__(self, who: str, predictor: Predictor, metrics: ModelMetrics) -> None:
        """who: the model and its version, in words."""
        self._who, self._predictor, self._metrics = who, predictor, metrics
        self._failures, self._reason = 0, ""

    @property
    def well(self) -> bool:
        """Whether it is to be asked: false from a failed blank photo on to one that is answered."""
        return not self._reason

    @property
    def doubtful(self) -> bool:
        return self._failures >= DOUBTED_AFTER or not self.well

    def answered(self) -> None:
        """A request got its probabilities."""
        self._failures = 0

    def failed(self) -> None:
        """A request ended in a fault of the model."""
        self._failures += 1

    def require_well(self) -> None:
        """Raise Refusal 503 where it does not answer."""
        if not self.well:
            raise Refusal(503, f"{self._who} fails on its device", retry_after_s=LOOK_S)

    async def examine(self, thread: Executor) -> None:
        """Ask it a blank photo; raises DeviceError where a GPU fails, as its context never recovers in a process."""
        was_well = self.well
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._predictor.warm_up)
        except Exception as error:  # onnxruntime raises its own types
            self._reason = first_line(error)
        else:
            self._failures, self._reason = 0, ""
        self._metrics.ready(self.well)
        if was_well and not self.well:
            log.error("%s fails on its device, with a blank photo too: %s; it is not ready", self._who, self._reason)
        elif self.well and not was_well:
            log.warning("%s answers again", self._who)
        if not self.well and self._predictor.on_gpu:
            provider = self._predictor.session.provider
            raise DeviceError(f"{provider} fails and does not recover in this process ({self._reason}): start it again")

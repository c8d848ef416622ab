"""What each call of the Open Inference Protocol over gRPC answers, from the same functions as over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Message

from finetune.bundle import OUTPUT
from finetune.config import LimitsConfig
from finetune.serving.asking import Facts
from finetune.serving.bodies import Patience
from finetune.serving.grpc_messages import in_time, read_infer
from finetune.serving.inference import configuration, describe_model, describe_server, infer, require_no_content
from finetune.serving.protocol import answer_tensors
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from finetune.serving.tensors import to_raw


class GrpcMethods:
    """Named as the protocol names them; each takes its message, and raises Refusal."""

    def __init__(self, messages: Any, repository: Repository, limits: LimitsConfig) -> None:
        """messages: the protocol's types."""
        self._messages, self._repository, self._limits = messages, repository, limits

    @property
    def all(self) -> tuple[Callable[[Any, Facts], Awaitable[Any]], ...]:
        return (
            self.ServerLive,
            self.ServerReady,
            self.ModelReady,
            self.ServerMetadata,
            self.ModelMetadata,
            self.ModelConfig,
            self.ModelInfer,
            self.ModelStatistics,
            self.RepositoryIndex,
            self.RepositoryModelLoad,
            self.RepositoryModelUnload,
        )

    async def ServerLive(self, _: Any, __: Facts) -> Any:
        return self._messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Any, __: Facts) -> Any:
        return self._messages.ServerReadyResponse(ready=self._repository.ready)

    async def ModelReady(self, message: Any, _: Facts) -> Any:
        try:
            self._repository.require(message.name, message.version or None)
        except Refusal as refusal:
            # who waits for a model asks until it is ready
            if refusal.status not in (404, 503):
                raise
            return self._messages.ModelReadyResponse(ready=False)
        return self._messages.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _: Any, __: Facts) -> Any:
        described = describe_server(self._repository)
        del described["parameters"]
        return self._messages.ServerMetadataResponse(**described)

    async def ModelMetadata(self, message: Any, _: Facts) -> Any:
        model = self._repository.find(message.name, message.version or None)
        return self._messages.ModelMetadataResponse(**describe_model(model, self._repository.find_all(message.name)))

    async def ModelConfig(self, message: Any, _: Facts) -> Any:
        model = self._repository.find(message.name, message.version or None)
        return self._messages.ModelConfigResponse(config=configuration(model, self._repository.find_all(message.name)))

    async def ModelInfer(self, message: Any, facts: Facts) -> Any:
        name, version = message.model_name, message.model_version or None
        self._repository.require(name, version)
        asked = await in_time(message.ByteSize(), read_infer, message)
        model = self._repository.choose(name, version)
        # a client that leaves cancels this very call
        patience = Patience(_never, self._limits.deadline_s)
        outputs = await infer(model, asked, self._limits, patience, facts)
        answer = self._messages.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=asked.id or ""
        )
        for tensor in answer_tensors(asked, outputs, {OUTPUT: model.predictor.labels}):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(to_raw(tensor))
        return answer

    async def ModelStatistics(self, message: Any, _: Facts) -> Any:
        if not message.name:
            models = self._repository.everything
        elif message.version:
            models = [self._repository.find(message.name, message.version)]
        else:
            models = self._repository.find_all(message.name)
        return self._messages.ModelStatisticsResponse(model_stats=[m.metrics.statistics() for m in models])

    async def RepositoryIndex(self, message: Any, _: Facts) -> Any:
        rows = self._repository.index()
        wanted = [row for row in rows if row["state"] == "READY" or not message.ready]
        return self._messages.RepositoryIndexResponse(models=wanted)

    async def RepositoryModelLoad(self, message: Any, _: Facts) -> Any:
        require_no_content(message.parameters)
        await self._repository.load(message.model_name)
        return self._messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, message: Any, _: Facts) -> Any:
        await self._repository.unload(message.model_name)
        return self._messages.RepositoryModelUnloadResponse()


async def _never() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody resolves")

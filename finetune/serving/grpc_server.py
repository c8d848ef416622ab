"""The Open Inference Protocol over gRPC, on a port of its own (grpc_port=), beside the HTTP interface."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message

from finetune.bundle import OUTPUT
from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.serving.inference import describe_model, describe_server, infer
from finetune.serving.keys import Keys, Role
from finetune.serving.logs import request_id
from finetune.serving.metrics import Metrics
from finetune.serving.protocol import InferRequest, answer_tensors, read_request
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from finetune.serving.tensors import to_raw

log = logging.getLogger("finetune.access")

# Looked for where modules are.
PROTOCOL = "finetune/serving/open_inference.proto"
# What the protocol's clients know each HTTP status as.
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
ADMIN = ("RepositoryModelLoad", "RepositoryModelUnload")
OPEN = ("ServerLive", "ServerReady")
# That run at one time, however large the messages may be.
FEWEST_CALLS = 8


class GrpcServer:
    """Answers the protocol's calls from the same repository, with the same keys and limits as HTTP."""

    def __init__(self, config: ServeConfig, repository: Repository, metrics: Metrics, keys: Keys) -> None:
        """Raises FinetuneError where grpc is not installed."""
        try:
            self._grpc = importlib.import_module("grpc")
            self._messages, services = self._grpc.protos_and_services(PROTOCOL)
        except (ImportError, NotImplementedError):
            raise FinetuneError(
                f"grpc_port={config.grpc_port} takes two more packages: pip install 'finetune-service[grpc]'"
            ) from None
        self._config, self._repository, self._metrics, self._keys = config, repository, metrics, keys
        self._services = services
        self._server: Any = None

    async def start(self) -> None:
        """Listen; raises FinetuneError where the port is taken."""
        limits = self._config.limits
        options = [("grpc.max_receive_message_length", int(limits.body_mb * 1e6)), ("grpc.so_reuseport", 0)]
        # messages are read whole, so that each call may hold one of the largest
        most = max(FEWEST_CALLS, int(limits.held_mb // limits.body_mb))
        self._server = self._grpc.aio.server(
            interceptors=[self._guard()], options=options, maximum_concurrent_rpcs=most
        )
        self._services.add_GRPCInferenceServiceServicer_to_server(self._servicer(), self._server)
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        address = f"{host}:{self._config.grpc_port}"
        try:
            if self._config.tls_cert is None or self._config.tls_key is None:
                port = self._server.add_insecure_port(address)
            else:
                pair = (self._config.tls_key.read_bytes(), self._config.tls_cert.read_bytes())
                port = self._server.add_secure_port(address, self._grpc.ssl_server_credentials([pair]))
        except RuntimeError:
            raise FinetuneError(f"cannot listen on {address}; choose another grpc_port=") from None
        await self._server.start()
        logging.getLogger(__name__).info("serving gRPC at %s:%d", host, port)

    async def stop(self) -> None:
        """Take no more calls, answer those that run."""
        await self._server.stop(self._config.grace_s)

    def _guard(self) -> object:
        """Return what looks at a call's key before gRPC takes its message into memory."""
        stream, may_send = self._grpc.stream_unary_rpc_method_handler, self._may_send

        class Guard(self._grpc.aio.ServerInterceptor):  # type: ignore[name-defined,misc]
            async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
                handler = await continuation(call)
                if handler is None or may_send(_name(call), Headers(raw=_raw(call.invocation_metadata))):
                    return handler
                # a handler of streams gets messages when it asks for them, which this one never does
                return stream(handler.unary_unary, response_serializer=handler.response_serializer)

        return Guard()

    def _may_send(self, name: str, headers: Headers) -> bool:
        """Return whether a call's message is worth reading: not without a key, nor where it says nothing."""
        with contextlib.suppress(Refusal):
            self._keys.require(headers, _role(name))
            return name not in OPEN
        return False

    def _servicer(self) -> object:
        class Servicer(self._services.GRPCInferenceServiceServicer):  # type: ignore[name-defined,misc]
            pass

        for method in (
            self.ServerLive,
            self.ServerReady,
            self.ModelReady,
            self.ServerMetadata,
            self.ModelMetadata,
            self.ModelInfer,
            self.ModelStatistics,
            self.RepositoryIndex,
            self.RepositoryModelLoad,
            self.RepositoryModelUnload,
        ):
            setattr(Servicer, method.__name__, staticmethod(self._enveloped(method)))
        return Servicer()

    def _enveloped(self, method: Callable[[Any, dict[str, Any]], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        """Return a call's handler: keys before it, a metric and a line in the log after it, refusals as statuses."""
        name = method.__name__

        async def handle(message: Any, context: Any) -> Any:
            token = request_id.set(uuid.uuid4().hex)
            facts: dict[str, Any] = {}
            began, status = time.perf_counter(), 200
            try:
                if name not in OPEN:
                    self._keys.require(Headers(raw=_raw(context.invocation_metadata())), _role(name))
                return await method(message, facts)
            except Refusal as refusal:
                status = refusal.status
                self._metrics.refused(str(status))
                await context.abort(getattr(self._grpc.StatusCode, CODES.get(status, "INTERNAL")), str(refusal))
            except asyncio.CancelledError:
                status = 499
                raise
            except Exception as fault:
                if isinstance(fault, self._grpc.aio.AbortError):
                    raise
                status = 500
                log.exception("gRPC %s failed", name)
                said = "internal error; the server's log has the details"
                await context.abort(self._grpc.StatusCode.INTERNAL, said)
            finally:
                seconds = time.perf_counter() - began
                self._metrics.request(f"grpc/{name}", status, seconds)
                if name not in OPEN:
                    fields = {"status": status, "ms": round(1000 * seconds, 1), **facts}
                    log.info("gRPC %s", name, extra={"fields": fields})
                request_id.reset(token)

        return handle

    async def ServerLive(self, _: Any, __: dict[str, Any]) -> Any:
        return self._messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Any, __: dict[str, Any]) -> Any:
        return self._messages.ServerReadyResponse(ready=self._repository.ready)

    async def ModelReady(self, message: Any, _: dict[str, Any]) -> Any:
        self._repository.require(message.name, message.version or None)
        return self._messages.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _: Any, __: dict[str, Any]) -> Any:
        described = describe_server(self._repository)
        del described["parameters"]
        return self._messages.ServerMetadataResponse(**described)

    async def ModelMetadata(self, message: Any, _: dict[str, Any]) -> Any:
        model = self._repository.choose(message.name, message.version or None)
        return self._messages.ModelMetadataResponse(
            **describe_model(model, self._repository.models.get(message.name, {}))
        )

    async def ModelInfer(self, message: Any, facts: dict[str, Any]) -> Any:
        name, version = message.model_name, message.model_version or None
        self._repository.require(name, version)
        asked = _read(message)
        model = self._repository.choose(name, version)
        # a client that leaves cancels this very call
        outputs = await infer(model, asked, self._config.limits, _never, facts)
        answer = self._messages.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=asked.id or ""
        )
        for tensor in answer_tensors(asked, outputs, {OUTPUT: model.predictor.labels}):
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            answer.raw_output_contents.append(to_raw(tensor))
        return answer

    async def ModelStatistics(self, message: Any, _: dict[str, Any]) -> Any:
        if message.name:
            models = [self._repository.choose(message.name, message.version or None)]
        else:
            models = self._repository.everything
        return self._messages.ModelStatisticsResponse(model_stats=[_as_message(m.metrics.statistics()) for m in models])

    async def RepositoryIndex(self, message: Any, _: dict[str, Any]) -> Any:
        rows = [row for row in self._repository.index() if row["state"] == "READY" or not message.ready]
        return self._messages.RepositoryIndexResponse(models=rows)

    async def RepositoryModelLoad(self, message: Any, _: dict[str, Any]) -> Any:
        await self._repository.load(message.model_name)
        return self._messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, message: Any, _: dict[str, Any]) -> Any:
        await self._repository.unload(message.model_name)
        return self._messages.RepositoryModelUnloadResponse()


def _read(message: Any) -> InferRequest:
    """Read a ModelInferRequest as the same request over HTTP: its tensors are the binary data behind the JSON."""
    raws = list(message.raw_input_contents) or [_contents(entry.contents) for entry in message.inputs]
    if len(raws) != len(message.inputs):
        raise Refusal(400, f"raw_input_contents has {len(raws)} entries for {len(message.inputs)} inputs")
    inputs = []
    for entry, raw in zip(message.inputs, raws, strict=True):
        parameters = {**_parameters(entry.parameters), "binary_data_size": len(raw)}
        shape = list(entry.shape)
        inputs.append({"name": entry.name, "datatype": entry.datatype, "shape": shape, "parameters": parameters})
    outputs = [{"name": entry.name, "parameters": _parameters(entry.parameters)} for entry in message.outputs]
    document = {
        "id": message.id or None,
        "parameters": _parameters(message.parameters),
        "inputs": inputs,
        "outputs": outputs,
    }
    return read_request(document, memoryview(b"".join(raws)))


def _contents(contents: Any) -> bytes:
    """Return values that came one by one as the bytes they would have been; only those of photos are known."""
    if contents.bytes_contents:
        return b"".join(len(element).to_bytes(4, "little") + element for element in contents.bytes_contents)
    if any(level > 255 for level in contents.uint_contents):
        raise Refusal(400, "uint_contents of a UINT8 tensor must be 0 to 255")
    return bytes(contents.uint_contents)


def _parameters(parameters: Any) -> dict[str, Any]:
    known = {key: value.WhichOneof("parameter_choice") for key, value in parameters.items()}
    return {key: getattr(parameters[key], choice) for key, choice in known.items() if choice is not None}


def _as_message(statistics: dict[str, Any]) -> dict[str, Any]:
    known = (
        "name",
        "version",
        "last_inference",
        "inference_count",
        "execution_count",
        "inference_stats",
        "batch_stats",
    )
    return {key: statistics[key] for key in known}


def _raw(metadata: Any) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in metadata or ()]


def _name(call: Any) -> str:
    return str(call.method.rpartition("/")[2])


def _role(name: str) -> Role:
    return "admin" if name in ADMIN else "predict"


async def _never() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody resolves")

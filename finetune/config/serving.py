"""`finetune serve`: what it serves, where it runs, and how much of anything it takes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from finetune.config.devices import Device, EngineCache
from finetune.schema import Place, Section

DAY_S = 86_400
# One look at a repository takes milliseconds, and a copy that pauses for less is taken for one that is through.
SHORTEST_LOOK_S = 0.05
Seconds = Annotated[float, Field(gt=0, le=DAY_S)]
SecondsOrNone = Annotated[float, Field(ge=0, le=DAY_S)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _not_all_the_time(seconds: float) -> float:
    if 0 < seconds < SHORTEST_LOOK_S:
        raise ValueError(f"give 0, or {SHORTEST_LOOK_S} and more")
    return seconds


class BatchConfig(Section):
    """Photos of several requests that run together."""

    photos: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        description="most photos in one run of a model; auto: 1 on processors, 32 on GPUs"
    )
    delay_ms: Annotated[float, Field(ge=0, le=1000)] = Field(
        description="how long a photo waits for others at an idle model that runs several together"
    )


class LimitsConfig(Section):
    """What is refused, so that the rest is answered."""

    # gRPC's own limit is a number of 32 bits
    body_mb: Annotated[float, Field(gt=0, le=2000)] = Field(
        description="largest request body in MB, decompressed; above it 413"
    )
    photos: Annotated[int, Field(ge=1, le=10_000)] = Field(description="most photos in one request; above it 413")
    megapixels: Annotated[float, Field(gt=0, le=100)] = Field(
        description="most pixels of a photo, in millions, by its header; above it 422"
    )
    queue_photos: Count = Field(
        description="photos that a model decodes, keeps waiting and runs at most, of one client alone three quarters; "
        "above it 503"
    )
    wait_s: Seconds = Field(description="longest expected wait of a photo for its turn; above it 503")
    deadline_s: Seconds = Field(description="time that a request gets once its body is read; then 504")
    header_s: Seconds = Field(description="time that a client gets to send a request's headers; then 408")
    body_s: Seconds = Field(
        description="time that a client gets to send a request's body, then 408, or to take an answer"
    )
    idle_s: Seconds = Field(description="time that a connection is kept open without a request")
    connections: Count = Field(
        description="open connections at most; one more takes a place from the address that has most, or gets 503"
    )
    held_mb: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        description="MB of all requests' bodies at one time, of one client alone three quarters; above it 503"
    )
    per_client: Count | None = Field(
        description="requests of one client, by key or else by address (IPv6: /64), at a time; above it 429; null: any"
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> LimitsConfig:
        if self.photos > self.queue_photos:
            raise ValueError("queue_photos is smaller than photos: a request of that many could never be taken")
        if self.body_mb > 0.75 * self.held_mb:
            raise ValueError(
                f"held_mb={self.held_mb:g} is too small for body_mb={self.body_mb:g}: one client gets three quarters; "
                f"a body of that size could never be taken; give {math.ceil(self.body_mb / 0.75)} or more"
            )
        return self


class ServeConfig(Section):
    """Serve every bundle of a model repository over HTTP."""

    models: Place = Field(description="model repository, or the folder of one model")
    host: str = Field(description="address to listen on; 0.0.0.0 for every interface")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(description="port to listen on; 0 takes a free one")
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        description="port for the same protocol over gRPC; null: none"
    )
    device: Device = Field(description="auto: cuda if it works, else cpu; any other: that or refuse")
    engine_cache: EngineCache
    gpu_memory_mb: Count | None = Field(
        description="most that onnxruntime's arena takes of a GPU, a model; CUDA and cuDNN come on top; null: any"
    )
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=512)] = Field(
        description="processor threads per model; auto: cores"
    )
    versions: Literal["latest", "all"] = Field(description="which versions of each model; routes= may name others")
    routes: Place | None = Field(
        description="YAML file of names and the versions, with shares, that answer to each; read again when changed"
    )
    reload_s: Annotated[SecondsOrNone, AfterValidator(_not_all_the_time)] = Field(
        description="seconds between two looks at the repository for what is new; 0: only at the start and on demand"
    )
    batch: BatchConfig
    limits: LimitsConfig
    keys: Place | None = Field(
        description="file of hashed API keys, a line each: NAME predict|admin SHA256; null: the variable FINETUNE_KEYS"
    )
    cors: tuple[str, ...] = Field(description="web origins whose pages may ask, such as [https://example.org]")
    tls_cert: Place | None = Field(description="PEM file of the certificate chain; with it, HTTPS")
    tls_key: Place | None = Field(description="PEM file of the certificate's key")
    logs: Literal["auto", "text", "json"] = Field(description="auto: text on a terminal, else JSON, one object a line")
    telemetry: Literal["none", "otlp"] = Field(
        description="otlp: a trace of each request to OTEL_EXPORTER_OTLP_ENDPOINT, as OpenTelemetry's variables say"
    )
    drain_s: SecondsOrNone = Field(
        description="seconds after SIGTERM in which it is not ready but still takes requests, for balancers to notice"
    )
    grace_s: Annotated[int, Field(ge=1, le=DAY_S)] = Field(description="seconds that running requests get after that")

    @model_validator(mode="after")
    def _key_and_certificate(self) -> ServeConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both or none")
        return self

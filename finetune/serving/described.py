"""What answers about the server and its models look like, for /docs; each is held to it, as FastAPI judges them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from finetune.bundle import Precision
from finetune.providers import Provider


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Alive(_Described):
    status: Literal["alive"]


class Ready(_Described):
    status: Literal["ready"]


class ServedModel(_Described):
    """One version of one model. provider, why: where it runs, and how that came to be."""

    name: str
    version: str
    labels: list[str]
    image_size: int
    precision: Precision
    provider: Provider
    why: str


class Listing(_Described):
    """names: all that clients may ask for, models and routes to them."""

    models: list[ServedModel]
    names: list[str]


class ModelDevice(_Described):
    name: str
    version: str
    provider: Provider
    why: str


class ServerParameters(_Described):
    models: list[ModelDevice]


class ServerMetadata(_Described):
    name: str
    version: str
    extensions: list[str]
    parameters: ServerParameters


class TensorMetadata(_Described):
    """shape: -1 where any number is taken."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Described):
    """inputs: either of which is given."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfiguredInput(_Described):
    """dims: without the batch."""

    name: str
    data_type: str
    format: str
    dims: list[int]
    optional: bool


class ConfiguredOutput(_Described):
    """dims: without the batch."""

    name: str
    data_type: str
    dims: list[int]
    label_filename: str


class SpecificVersions(_Described):
    versions: list[int]


class VersionPolicy(_Described):
    specific: SpecificVersions


class DynamicBatching(_Described):
    max_queue_delay_microseconds: int


class Configuration(_Described):
    """Triton's ModelConfig."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: list[ConfiguredInput]
    output: list[ConfiguredOutput]
    dynamic_batching: DynamicBatching


class CountedTime(_Described):
    """How often something was done, and how long it took in all."""

    count: int
    ns: int


class InferStatistics(_Described):
    """success and fail count requests, the others photos."""

    success: CountedTime
    fail: CountedTime
    queue: CountedTime
    compute_input: CountedTime
    compute_infer: CountedTime
    compute_output: CountedTime
    cache_hit: CountedTime
    cache_miss: CountedTime


class BatchStatistics(_Described):
    batch_size: int
    compute_input: CountedTime
    compute_infer: CountedTime
    compute_output: CountedTime


class ModelStatistics(_Described):
    """last_inference: milliseconds since 1970; inference_count: photos; execution_count: batches."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class AllStatistics(_Described):
    model_stats: list[ModelStatistics]


class IndexEntry(_Described):
    """version: empty for a model that was unloaded; reason: empty for one that answers and is what lies on the disk."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str

"""What Triton reads beside a model file: `config.pbtxt` and the labels."""

from __future__ import annotations

from collections.abc import Sequence

MAX_BATCH = 32
# A batch of one of these sizes is run at once; what comes short of the next waits this long for more requests.
PREFERRED_BATCHES = (8, 16, MAX_BATCH)
MAX_DELAY_US = 2_000
# Requests that may wait, and for how long: past either they are refused at once, while clients still listen.
MAX_QUEUE = 128
MAX_WAIT_US = 1_000_000


def triton_config(name: str, entry: str, output: str, image_size: int, classes: int) -> str:
    """Return `config.pbtxt`, whose dimensions leave the batch out.

    entry, output: the graph's names. As no `instance_group` is given, Triton runs the model on every GPU, or else on
    the CPU. It is ready only after the warm-up, which runs one photo and the largest batch on every instance.
    Fields: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
    """
    shape = f"dims: [ {image_size}, {image_size}, 3 ]"
    warm_ups = "".join(_warm_up(entry, shape, batch) for batch in (1, MAX_BATCH))
    return f"""\
name: {quote(name)}
platform: "onnxruntime_onnx"
max_batch_size: {MAX_BATCH}
input [
  {{ name: {quote(entry)} data_type: TYPE_UINT8 format: FORMAT_NHWC {shape} }}
]
output [
  {{ name: {quote(output)} data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }}
]
version_policy {{ latest {{ num_versions: 1 }} }}
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED_BATCHES))} ]
  max_queue_delay_microseconds: {MAX_DELAY_US}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {MAX_WAIT_US}
    allow_timeout_override: true
    max_queue_size: {MAX_QUEUE}
  }}
}}
{warm_ups}"""


def labels_file(labels: Sequence[str]) -> str:
    """Return `labels.txt`: a line a class, in the order of the outputs.

    Triton knows no escapes in it, so a line break within a name is written as backslash and n: it must not move the
    names after it.
    """
    return "".join(label.replace("\r", "\\r").replace("\n", "\\n") + "\n" for label in labels)


def quote(text: str) -> str:
    """Return a string of protobuf's text format; bytes other than printable ASCII are octal, as its printer has it."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _warm_up(entry: str, shape: str, batch: int) -> str:
    return f"""\
model_warmup {{
  name: "batch of {batch}"
  batch_size: {batch}
  inputs {{ key: {quote(entry)} value {{ data_type: TYPE_UINT8 {shape} zero_data: true }} }}
}}
"""

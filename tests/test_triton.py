from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from finetune.bundle import INPUT, OUTPUT
from finetune.triton import MAX_BATCH, labels_file, triton_config
from tests.conftest import ROOT

AWKWARD = 'a "quoted" \\ one\nwith a line break, é, 花 and 🌸'


def parse(config: str) -> model_config_pb2.ModelConfig:
    """Read a configuration as Triton does; raises ParseError on a field that it does not know."""
    return text_format.Parse(config, model_config_pb2.ModelConfig())


def test_triton_reads_every_field_as_it_is_meant() -> None:
    config = parse(triton_config("flowers", INPUT, OUTPUT, image_size=224, classes=3))
    assert (config.name, config.platform, config.max_batch_size) == ("flowers", "onnxruntime_onnx", MAX_BATCH)
    (entry,) = config.input
    assert (entry.name, list(entry.dims)) == ("images", [224, 224, 3])
    assert (entry.data_type, entry.format) == (model_config_pb2.TYPE_UINT8, model_config_pb2.ModelInput.FORMAT_NHWC)
    (output,) = config.output
    assert (output.name, list(output.dims), output.label_filename) == ("probabilities", [3], "labels.txt")
    assert output.data_type == model_config_pb2.TYPE_FP32
    assert config.version_policy.latest.num_versions == 1
    assert not config.instance_group
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [8, 16, 32]
    assert batching.max_queue_delay_microseconds == 2_000
    policy = batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (1_000_000, 128)
    assert policy.allow_timeout_override


def test_it_is_warmed_up_with_one_photo_and_the_largest_batch() -> None:
    warm_ups = parse(triton_config("flowers", INPUT, OUTPUT, image_size=64, classes=3)).model_warmup
    assert [one.batch_size for one in warm_ups] == [1, MAX_BATCH]
    assert len({one.name for one in warm_ups}) == 2
    for one in warm_ups:
        (key,) = one.inputs
        value = one.inputs[key]
        assert (key, list(value.dims), value.data_type) == ("images", [64, 64, 3], model_config_pb2.TYPE_UINT8)
        assert value.WhichOneof("input_data_type") == "zero_data"


def test_triton_refuses_no_batch_size_of_it() -> None:
    """Its ValidateModelConfig: preferred sizes are positive and no larger than max_batch_size."""
    config = parse(triton_config("flowers", INPUT, OUTPUT, image_size=224, classes=3))
    sizes = [*config.dynamic_batching.preferred_batch_size, *(one.batch_size for one in config.model_warmup)]
    assert all(0 < size <= config.max_batch_size for size in sizes)


def test_the_instances_that_the_documents_choose_are_read() -> None:
    (added,) = re.findall(r"```protobuf\n(.*?)```", (ROOT / "docs/deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    config = parse(triton_config("flowers", INPUT, OUTPUT, image_size=64, classes=3) + added)
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU, [0])


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_survives(name: str) -> None:
    assert parse(triton_config(name, name, name, image_size=8, classes=1)).name == name


def test_a_label_is_a_line_whatever_it_holds() -> None:
    assert labels_file([AWKWARD, "rose"]).split("\n") == [AWKWARD.replace("\n", "\\n"), "rose", ""]


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt"])
def test_a_bundle_has_both_files(tiny_models: Path, name: str) -> None:
    text = (tiny_models / "tiny" / name).read_text(encoding="utf-8")
    wanted = {
        "config.pbtxt": triton_config("tiny", INPUT, OUTPUT, image_size=64, classes=3),
        "labels.txt": "blue\ngreen\nred\n",
    }
    assert text == wanted[name]

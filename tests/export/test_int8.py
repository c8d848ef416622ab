from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnxruntime.quantization import QuantType

from finetune.export.int8 import Quantiser, quantiser, rank_layers, search_int8
from finetune.export.processor import Int8Arithmetic
from tests.export.graphs import answers, noise, steep_graph, weight_types

X86 = Int8Arithmetic(QuantType.QUInt8, saturates=False)


@pytest.fixture(scope="module")
def quantise(stages_graph: onnx.ModelProto) -> Iterator[Quantiser]:
    with quantiser(stages_graph, [noise(8, 64), noise(3, 64)], X86) as ready:
        yield ready


def test_all_layers_are_in_int8_and_answer_nearly_as_in_fp32(
    quantise: Quantiser, stages_graph: onnx.ModelProto
) -> None:
    whole = quantise.without(())
    assert set(weight_types(whole).values()) == {TensorProto.INT8}
    photos = noise(5, 64)
    np.testing.assert_allclose(answers(whole, photos), answers(stages_graph, photos), atol=0.1)
    assert whole.ByteSize() < 0.6 * stages_graph.ByteSize()
    for side in ("input", "output"):
        ((now,), (before,)) = (getattr(graph.graph, side) for graph in (whole, stages_graph))
        assert (now.name, now.type) == (before.name, before.type)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_just_the_layers_asked_for_stay_in_float(quantise: Quantiser, data: st.DataObject) -> None:
    in_float = data.draw(st.sets(st.sampled_from(quantise.layers)))
    types = weight_types(quantise.without(in_float))
    assert {name for name, data_type in types.items() if data_type == TensorProto.FLOAT} == in_float


def test_with_all_layers_in_float_the_answers_are_those_of_fp32(
    quantise: Quantiser, stages_graph: onnx.ModelProto
) -> None:
    photos = noise(4, 64)
    found = answers(quantise.without(quantise.layers), photos)
    np.testing.assert_allclose(found, answers(stages_graph, photos), atol=1e-6)


def test_what_float_layers_hand_to_float_nodes_is_not_rounded(quantise: Quantiser) -> None:
    """One layer in int8 rounds what it reads and what it makes, and nothing else."""
    for layer in (quantise.layers[0], quantise.layers[-1]):
        nodes = quantise.alone(layer).graph.node
        assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 2


def test_the_layer_that_int8_harms_most_is_ranked_first() -> None:
    graph = steep_graph(1.0)
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    # large weights of a channel that is always zero: they change no answer, but leave 8 bits nothing for the others
    for name, index, factor in (("first", 0, 0), ("second", (slice(None), 0), 3000)):
        values = onnx.numpy_helper.to_array(weights[name]).copy()
        values[index] *= factor
        weights[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    photos = noise(6)
    with quantiser(graph, [photos], X86) as ready:
        assert rank_layers(ready, graph, photos) == ["second_conv", "first_conv"]


def test_the_search_leaves_no_more_in_float_than_the_gate_asks_for(stages_graph: onnx.ModelProto) -> None:
    asked: list[int] = []

    def accepts(proto: onnx.ModelProto) -> bool:
        asked.append(sum(data_type == TensorProto.FLOAT for data_type in weight_types(proto).values()))
        return asked[-1] >= 2

    found = search_int8(stages_graph, [noise(4, 64)], noise(3, 64), X86, accepts)
    assert found.accepted
    assert asked == sorted(set(asked))
    assert asked[0] == 0
    assert len(found.in_float) == asked[-1]
    kept = {name for name, data_type in weight_types(found.proto).items() if data_type == TensorProto.FLOAT}
    assert set(found.in_float) == kept


def test_a_gate_that_nothing_passes_ends_the_search_at_half_the_layers() -> None:
    found = search_int8(steep_graph(1.0), [noise(4)], noise(3), X86, lambda proto: False)
    assert not found.accepted
    assert (len(found.in_float), found.layers) == (1, 2)


def test_nothing_is_left_behind_said_or_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = steep_graph(1.0)
    before = graph.SerializeToString(deterministic=True)
    found = search_int8(graph, [noise(4)], noise(3), X86, lambda proto: True)
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr()
    assert (said.out, said.err, caplog.text) == ("", "", "")
    assert [(entry.key, entry.value) for entry in found.proto.metadata_props] == [("finetune.name", "convolutions")]
    assert graph.SerializeToString(deterministic=True) == before


def test_where_sums_saturate_weights_have_seven_bits() -> None:
    with quantiser(steep_graph(1.0), [noise(4)], Int8Arithmetic(QuantType.QUInt8, saturates=True)) as ready:
        stored = {tensor.name: tensor for tensor in ready.without(()).graph.initializer}
    weights = onnx.numpy_helper.to_array(stored["first_quantized"])
    assert 60 <= np.abs(weights.astype(int)).max() <= 64

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from finetune.errors import FinetuneError
from finetune.onnx_file import external_tensor


def model(*nodes: onnx.NodeProto, weights: list[TensorProto] | None = None) -> onnx.ModelProto:
    entry, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y"))
    return helper.make_model(helper.make_graph(list(nodes), "graph", [entry], [answer], weights or []))


def elsewhere(name: str, place: str = "/etc/passwd") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    return tensor


INSIDE = numpy_helper.from_array(np.ones(2, np.float32), "w")
ADD = helper.make_node("Add", ["x", "w"], ["y"])


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    """A tensor of a graph in an attribute of a node."""
    constant = helper.make_node("Constant", [], ["z"], value=tensor)
    answer = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    branch = helper.make_graph([constant], "branch", [], [answer])
    return model(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize(
    ("proto", "name"),
    [
        (model(ADD, weights=[INSIDE]), None),
        (model(ADD, weights=[INSIDE, elsewhere("outside")]), "outside"),
        (in_a_branch(numpy_helper.from_array(np.ones(2, np.float32), "w")), None),
        (in_a_branch(elsewhere("hidden")), "hidden"),
        (model(ADD, weights=[elsewhere("")]), "a tensor without a name"),
    ],
)
def test_values_in_another_file_are_found_wherever_they_are_named(
    proto: onnx.ModelProto, name: str | None, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert external_tensor(tmp_path / "model.onnx") == name


def test_a_location_alone_is_enough_and_the_default_one_is_none(tmp_path: Path) -> None:
    default = TensorProto(name="d", data_type=TensorProto.FLOAT, dims=[0], data_location=TensorProto.DEFAULT)
    outside = TensorProto(name="e", data_type=TensorProto.FLOAT, dims=[0], data_location=TensorProto.EXTERNAL)
    for tensor, found in ((default, None), (outside, "e")):
        (tmp_path / "model.onnx").write_bytes(model(ADD, weights=[tensor]).SerializeToString())
        assert external_tensor(tmp_path / "model.onnx") == found


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no model", b"\xff" * 40, b"\x3a\x7f"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(FinetuneError, match=r"model.onnx is (empty|no ONNX file)"):
        external_tensor(tmp_path / "model.onnx")


def test_a_file_nested_without_end_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(25):
        graph = helper.make_graph([helper.make_node("If", [], ["y"], then_branch=graph)], "outer", [], [])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(FinetuneError, match="is no ONNX file"):
        external_tensor(tmp_path / "model.onnx")

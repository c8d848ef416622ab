"""The same graph with less in it: no batch norm, and nothing that comes out the same for every photo."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import ir, optimizer, rewriter
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from finetune.errors import FinetuneError

# onnxscript would leave what is computed from a layer's weights, such as their standardisation, to every single run
ANY_SIZE = 2**31
# Of onnxscript's, those that find something in classifiers: each rule is tried on each node. Its default set moreover
# names the bounds alike where one tensor is clipped twice, and loses a pair.
RULES = (
    rules.mul_by_1_rule,
    rules.no_op_cast_rule,
    rules.cast_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    # biases of 0, which convolutions would share: a batch norm does not go into what another layer reads too
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
)


def lean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what does no work: constants are computed, and dead, double and neutral nodes go; answers stay the same."""
    model = ir.from_proto(proto)
    fold = FoldConstantsPass(shape_inference=True, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    ir.passes.Sequential(
        passes.InlinePass(),
        ir.passes.PassManager([fold, rewriter.RewritePass(RULES), passes.RemoveUnusedNodesPass()], steps=2),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    )(model)
    RewriteRuleSet([_NeutralGather().rule(), _ScaleIntoConv().rule()]).apply_to_model(model)  # type: ignore[no-untyped-call]
    _keep_pads_before_pools(model)
    ir.passes.Sequential(
        fold,
        passes.RemoveUnusedNodesPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)
    return ir.to_proto(model)


def _keep_pads_before_pools(model: ir.Model) -> None:
    """Name the axes that are padded before a pool, which keeps onnxruntime from padding in the pool instead.

    It would add to a pool's own padding, which is no zeros but nothing at all: where all values beside it are negative,
    the largest would be one of them, and a mean would be of fewer.
    """
    for node in model.graph:
        readers = [reader for value in node.outputs for reader, _ in value.uses()]
        if node.op_type != "Pad" or not any(reader.op_type in ("MaxPool", "AveragePool") for reader in readers):
            continue
        pads = node.inputs[1]
        assert pads is not None
        if len(node.inputs) < 4 and pads.const_value is not None:
            rank = constant(pads).size // 2
            axes = ir.val(f"axes_of_rank_{rank}", const_value=ir.tensor(np.arange(rank)))
            model.graph.initializers[f"axes_of_rank_{rank}"] = axes
            node.resize_inputs(4)
            node.replace_input_with(3, axes)


def fold_batch_norm(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold each batch norm into the Conv, ConvTranspose or Gemm before it, or make it one Mul and one Add.

    A lean graph is wanted. Answers change by rounding only. Raises FinetuneError where a norm's statistics are no
    constants, as in a network exported for training.
    """
    model = ir.from_proto(proto)
    into_weights = [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ]
    RewriteRuleSet(into_weights).apply_to_model(model)
    RewriteRuleSet([_ScaleAndShift().rule()]).apply_to_model(model)  # type: ignore[no-untyped-call]
    left = [node.name for node in model.graph if node.op_type == "BatchNormalization"]
    if left:
        raise FinetuneError(
            f"the batch norm {left[0]} takes its statistics from each batch; export the model in eval mode"
        )
    # the scales and shifts of norms without an affine part, which several shared, have no reader now
    optimizer.remove_unused_nodes(model)
    return ir.to_proto(model)


class _ScaleAndShift(RewriteRuleClassBase):
    """A batch norm that no layer before it can take in: pre-activation networks have it after a sum or a pool."""

    def pattern(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, mean: ir.Value, var: ir.Value) -> Any:
        return op.BatchNormalization(x, scale, bias, mean, var, _allow_other_attributes=True, _outputs=["normed"])

    def check(self, context: Any, x: ir.Value, normed: ir.Value, **parameters: ir.Value) -> MatchResult:  # type: ignore[override]  # called with the pattern's names
        matched = MatchResult()
        if x.shape is None or any(value.const_value is None for value in parameters.values()):
            matched.fail("its parameters are no constants")
        return matched

    def rewrite(self, op: Any, x: ir.Value, normed: ir.Value, **parameters: ir.Value) -> Any:
        scale, bias, mean, var = (constant(parameters[name]) for name in ("scale", "bias", "mean", "var"))
        node = normed.producer()
        assert node is not None
        assert x.shape is not None
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        shape = (-1, *(1 for _ in x.shape[2:]))
        factor = scale / np.sqrt(var + np.float32(epsilon))
        factors = op.initializer(ir.tensor(factor.reshape(shape)), f"{normed.name}_scale")
        shifts = op.initializer(ir.tensor((bias - mean * factor).reshape(shape)), f"{normed.name}_shift")
        return op.Add(op.Mul(x, factors), shifts)


class _ScaleIntoConv(RewriteRuleClassBase):
    """What every photo is divided by, a number a channel, goes into the weights of the convolution that follows."""

    def pattern(self, op: Any, x: ir.Value, divisor: ir.Value, weights: ir.Value) -> Any:
        scaled = op.Div(x, divisor)
        return op.Conv(scaled, weights, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["convolved"])

    def check(self, context: Any, x: ir.Value, divisor: ir.Value, weights: ir.Value, **_: ir.Value) -> MatchResult:  # type: ignore[override]  # called with the pattern's names
        matched = MatchResult()
        known = divisor.const_value is not None and weights.const_value is not None
        # a grouped convolution has fewer channels a filter than it reads
        if not known or constant(divisor).shape != (1, constant(weights).shape[1], 1, 1):
            matched.fail("it is no number a channel, or the weights are no constants")
        return matched

    def rewrite(self, op: Any, x: ir.Value, divisor: ir.Value, weights: ir.Value, convolved: ir.Value) -> Any:
        node = convolved.producer()
        assert node is not None
        scaled = op.initializer(ir.tensor(constant(weights) / constant(divisor)), f"{weights.name}_scaled")
        return op.Conv(x, scaled, *node.inputs[2:], **dict(node.attributes))


class _NeutralGather(RewriteRuleClassBase):
    """Four dimensions gathered to where they were: what the exporter makes of timm's pooling (`as_strided`)."""

    def pattern(
        self,
        op: Any,
        x: ir.Value,
        flat: ir.Value,
        first: ir.Value,
        photos: ir.Value,
        one: ir.Value,
        stride: ir.Value,
        axes: ir.Value,
        offset: ir.Value,
        channels: ir.Value,
        third: ir.Value,
        fourth: ir.Value,
    ) -> Any:
        starts = op.Unsqueeze(op.Mul(op.Range(first, photos, one), stride), axes)
        places = op.Add(op.Add(op.Add(op.Add(offset, starts), channels), third), fourth)
        return op.Gather(op.Reshape(x, flat), places)

    def check(self, context: Any, x: ir.Value, photos: ir.Value, **constants: ir.Value) -> MatchResult:  # type: ignore[override]  # called with the pattern's names
        matched = MatchResult()
        if not _is_neutral(x, constants):
            matched.fail("it changes the order")
        return matched

    def rewrite(self, op: Any, x: ir.Value, **_: ir.Value) -> Any:
        return op.Identity(x)


def _is_neutral(x: ir.Value, constants: dict[str, ir.Value]) -> bool:
    """Whether photo n and channel c of (N, width, 1, 1) come from n x width + c, where they lie."""
    if x.shape is None or any(value.const_value is None for value in constants.values()):
        return False
    width = x.shape[1] if len(x.shape) == 4 else None
    if not isinstance(width, int) or list(x.shape[2:]) != [1, 1]:
        return False
    wanted = {
        "flat": [-1],
        "first": [0],
        "one": [1],
        "stride": [width],
        "axes": [1, 2, 3],
        "offset": [0],
        "channels": list(range(width)),
        "third": [0],
        "fourth": [0],
    }
    found = {name: constant(value).ravel().tolist() for name, value in constants.items()}
    return found == wanted and list(constant(constants["channels"]).shape) == [1, width, 1, 1]


def constant(value: ir.Value) -> NDArray[Any]:
    """Return the array of a value that is an initialiser."""
    assert value.const_value is not None
    return value.const_value.numpy()

"""Labels for the channels of a graph: what has the same label stays or goes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune.export.folding import constant

Labels = NDArray[np.intp]
# The label of what has to stay.
KEPT = 0


class Use(NamedTuple):
    """An initialiser as one node reads it; another node may read the same one."""

    node: ir.Node
    position: int

    @property
    def value(self) -> ir.Value:
        value = self.node.inputs[self.position]
        assert value is not None
        return value


@dataclass(frozen=True)
class Layer:
    """Weights that turn channels into others: those on `input_axis` of the input, by axis `reads`, into axis `writes`.

    bias: what is added to each channel that it writes, where there is such a thing.
    """

    weights: Use
    bias: Use | None
    reads: int
    writes: int
    input_axis: int


@dataclass
class Channels:
    """The label of every index on every axis of every value; what has the same label goes together.

    shapes: the constants that say to what something is reshaped.
    """

    values: dict[ir.Value, list[Labels]] = field(default_factory=dict)
    uses: dict[Use, list[Labels]] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    depthwise: list[Use] = field(default_factory=list)
    shapes: list[Use] = field(default_factory=list)


class Tracer:
    """Gives labels, and notes which are the same channel."""

    def __init__(self) -> None:
        self.found = Channels()
        self.next_label = count(KEPT + 1)
        self.same: list[tuple[Labels, Labels]] = []

    def of(self, node: ir.Node, position: int) -> list[Labels]:
        """Return the labels of an input, which are new where it is an initialiser."""
        value = node.inputs[position]
        assert value is not None
        if value in self.found.values:
            return self.found.values[value]
        use = Use(node, position)
        if use not in self.found.uses:
            self.found.uses[use] = [self.new(size) for size in constant(value).shape]
        return self.found.uses[use]

    def new(self, size: int) -> Labels:
        return np.fromiter((next(self.next_label) for _ in range(size)), np.intp, size)

    def kept(self, value: ir.Value) -> list[Labels]:
        return [np.full(size, KEPT) for size in sizes(value)]

    def keep(self, axes: Sequence[Labels]) -> None:
        for labels in axes:
            self.join(labels, np.full_like(labels, KEPT))

    def join(self, some: Labels, others: Labels) -> None:
        self.same.append((some, others))

    def resolved(self) -> Channels:
        """Give all that was joined one label."""
        rows, columns = (np.concatenate(part) for part in zip(*self.same, strict=True))
        size = next(self.next_label)
        links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
        _, label = connected_components(links, directed=False)
        # label 0 goes to the first node it meets, which is KEPT
        for axes in (*self.found.values.values(), *self.found.uses.values()):
            axes[:] = [label[labels].astype(np.intp) for labels in axes]
        return self.found


def sizes(value: ir.Value) -> list[int]:
    """Return a value's dimensions, 1 for one that is known only when it runs: the batch."""
    return [] if value.shape is None else [size if isinstance(size, int) else 1 for size in value.shape]


def is_constant(node: ir.Node, position: int) -> bool:
    value = node.inputs[position] if position < len(node.inputs) else None
    return value is not None and value.const_value is not None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def constant_rank(node: ir.Node, position: int) -> int:
    return constant(Use(node, position).value).ndim if is_constant(node, position) else -1

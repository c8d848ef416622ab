"""Which channels go together, and that each layer is left with whole blocks of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from finetune.export.tracing import KEPT, Channels

# onnxruntime computes convolutions on a CPU in blocks of so many; a layer of 95 channels is no faster than one of 96
BLOCK = 8

Mask = NDArray[np.bool_]
Labels = NDArray[np.intp]


def removable(channels: Channels) -> Mask:
    """Return of each label whether it is a channel that some layer writes and that may go."""
    every = (*channels.values.values(), *channels.uses.values())
    written = np.zeros(1 + max(int(labels.max(initial=KEPT)) for axes in every for labels in axes), bool)
    for layer in channels.layers:
        written[channels.uses[layer.weights][layer.writes]] = True
    written[KEPT] = False
    return written


def whole_blocks(channels: Channels, chosen: Mask) -> Mask:
    """Return `chosen` but for some, so that each group is left with whole blocks, at least one."""
    gone = np.zeros(len(chosen), bool)
    for group in _groups(channels):
        fewest = max(1, -(-int((~chosen[group]).sum()) // BLOCK)) * BLOCK
        gone[group[chosen[group]][: max(0, len(group) - fewest)]] = True
    return gone


def least_blocks(channels: Channels, importance: Mapping[int, float], most: int) -> Mask:
    """Return the blocks of channels that matter least, together at most so many channels; a block a group stays."""
    blocks: list[tuple[float, Labels]] = []
    may_go = removable(channels)
    for group in _groups(channels):
        able = group[may_go[group]]
        worth = np.asarray([importance.get(label, 0.0) for label in able.tolist()])
        order = np.argsort(worth, kind="stable")
        # the first is what there is beyond whole blocks, the last stays
        ends = range(len(able) % BLOCK or BLOCK, len(able), BLOCK)
        parts = np.split(order, list(ends))[:-1]
        # a first one of few channels does not wait behind those that matter more than it
        means = accumulate((float(worth[part].mean()) for part in parts), max)
        blocks.extend(zip(means, (able[part] for part in parts), strict=True))
    gone = np.zeros(len(may_go), bool)
    for _, labels in sorted(blocks, key=lambda block: block[0]):
        if gone.sum() + len(labels) > most:
            break
        gone[labels] = True
    return gone


def _groups(channels: Channels) -> list[Labels]:
    """Return the labels that the same layers write and read, group by group."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(channels.layers):
        for axis in (layer.reads, layer.writes):
            for label in set(channels.uses[layer.weights][axis].tolist()) - {KEPT}:
                places.setdefault(label, []).append((number, axis))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for label, where in places.items():
        groups.setdefault(tuple(where), []).append(label)
    return [np.asarray(labels, np.intp) for labels in groups.values()]

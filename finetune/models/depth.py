"""The depth of a network: its parameters in groups from the stem to the top."""

from __future__ import annotations

from posixpath import commonpath
from typing import NamedTuple

from timm.models import group_parameters
from torch import nn


class DepthGroup(NamedTuple):
    """Parameters at one depth, by their names in the network."""

    names: tuple[str, ...]

    @property
    def modules(self) -> str:
        """Where they lie, in words: the module that holds all of them, or the first block and the last."""
        shared = commonpath([name.replace(".", "/") for name in self.names]).replace("/", ".")
        if shared in self.names:
            shared = shared.rpartition(".")[0]
        first, last = _block(self.names[0]), _block(self.names[-1])
        return shared or (first if first == last else f"{first} .. {last}")


def depth_groups(network: nn.Module) -> list[DepthGroup]:
    """Return every parameter of a timm network in one group each, from the stem to the top.

    By timm's own `group_matcher`; where an architecture has none, by the order in which its blocks were registered,
    which is that of the forward pass. A last norm is no depth of its own and goes with the block before it.
    """
    names = dict(network.named_parameters())
    groups = _by_matcher(network) if hasattr(network, "group_matcher") else _by_registration(list(names))
    missing = names.keys() - {name for group in groups for name in group}
    if missing:
        groups[0] = [name for name in names if name in missing] + groups[0]
    while len(groups) > 1 and all(names[name].ndim <= 1 for name in groups[-1]):
        top = groups.pop()
        groups[-1] = groups[-1] + top
    return [DepthGroup(tuple(group)) for group in groups]


def _by_matcher(network: nn.Module) -> list[list[str]]:
    groups = group_parameters(network, network.group_matcher(coarse=False), reverse=False)  # type: ignore[operator]
    return [groups[number] for number in sorted(groups)]


def _by_registration(names: list[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_block(name), []).append(name)
    # what hangs on the network itself, such as position embeddings, belongs to its stem
    loose = [name for name in names if "." not in name]
    stem, *rest = [group for group in groups.values() if group[0] not in loose]
    return [loose + stem, *rest]


def _block(name: str) -> str:
    """Return the path of a parameter's block: up to its second number, or its first module."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbers[:2][-1] + 1]) if numbers else parts[0]

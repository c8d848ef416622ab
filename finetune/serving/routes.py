"""Names that clients ask for, and which versions answer to each, in what shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config import HIDDEN_NAMES
from finetune.errors import FinetuneError

# A model's folder may have any name but a hidden one, and its server serves it by that.
TARGET = re.compile(r"([^/.][^/]*)/([1-9][0-9]*)")


class Target(NamedTuple):
    """One version of one model."""

    model: str
    version: int

    def __str__(self) -> str:
        """Return what the routes' file calls it."""
        return f"{self.model}/{self.version}"


@dataclass
class Route:
    """Draws versions in exact shares: of any run of requests, each gets its part within one.

    Smooth weighted round robin: every target gains its weight, the richest answers and pays the sum of all.
    """

    weights: dict[Target, float]

    def __post_init__(self) -> None:
        self._credit = dict.fromkeys(self.weights, 0.0)

    def draw(self) -> Target:
        for target, weight in self.weights.items():
            self._credit[target] += weight
        drawn = max(self._credit, key=self._credit.__getitem__)
        self._credit[drawn] -= sum(self.weights.values())
        return drawn


def read_routes(path: Path) -> dict[str, Route]:
    """Read a YAML file of names, each with `MODEL/VERSION` or a mapping of several to their shares.

    Raises FinetuneError with the file and the name that is wrong.
    """
    from omegaconf import OmegaConf
    from yaml import MarkedYAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise FinetuneError(f"routes={path}{where} cannot be read: {error.problem or error.context}") from None
    except Exception as error:  # omegaconf raises types of its own
        raise FinetuneError(f"routes={path} cannot be read: {str(error).strip().splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise FinetuneError(f"routes={path}: it must be a mapping, such as 'production: flowers/2'")
    return {str(name): _route(path, str(name), value) for name, value in values.items()}


def _route(path: Path, name: str, value: Any) -> Route:
    if name in HIDDEN_NAMES:
        raise FinetuneError(f"routes={path}: {HIDDEN_NAMES[name]}: give {name} another name")
    shares = value if isinstance(value, dict) else {value: 100}
    weights: dict[Target, float] = {}
    for target, share in shares.items():
        found = TARGET.fullmatch(str(target))
        if found is None:
            raise FinetuneError(f"routes={path}: {name}: {target} is not of the form MODEL/VERSION, such as flowers/2")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 100:
            raise FinetuneError(f"routes={path}: {name}: {target}: {share} is no share of 0 to 100")
        weights[Target(found[1], int(found[2]))] = share
    if abs(sum(weights.values()) - 100) > 1e-6:
        total = sum(weights.values())
        raise FinetuneError(f"routes={path}: {name}: the shares add up to {total:g}, not to 100")
    return Route({target: share for target, share in weights.items() if share})

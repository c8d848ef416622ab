"""The commands: what each takes, in words, and what is wrong with a command line."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetune import config
from finetune.errors import nearest
from finetune.schema import Section, describe

HELP_WIDTH = 120


@dataclass(frozen=True)
class Command:
    """last_work_s: for threads that cannot be stopped, once the command has ended; None: as long as they take."""

    schema: type[Section]
    # imported only when the command runs: `finetune serve` must not wait for torch
    module: str
    last_work_s: float | None = None


COMMANDS = {
    "check": Command(config.CheckConfig, "finetune.data.check"),
    "train": Command(config.TrainConfig, "finetune.training.command"),
    "evaluate": Command(config.EvaluateConfig, "finetune.evaluation.evaluate"),
    "export": Command(config.ExportConfig, "finetune.export.command"),
    "predict": Command(config.PredictConfig, "finetune.serving.predict"),
    "serve": Command(config.ServeConfig, "finetune.serving.serve", last_work_s=1),
    "models": Command(config.ModelsConfig, "finetune.models.listing"),
}


def conf_dir() -> Path:
    """Return the folder of YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def explain(name: str, arguments: list[str], error: Exception) -> str:
    """Turn Hydra's words into what was given and what to write instead."""
    known = describe(COMMANDS[name].schema)
    groups = _groups(name)
    for argument in arguments:
        key, equals, value = argument.lstrip("+~").partition("=")
        if argument.startswith("-"):
            continue
        if not equals:
            return f"'{argument}' is not of the form key=value"
        # one option, a list of them, or what --multirun runs in turn
        wrong = [option for option in re.split(r"[\s,\[\]'\"]+", value) if option not in (*groups.get(key, ()), "")]
        if key in groups and wrong:
            return f"{key}={value} is wrong: choose from {', '.join(groups[key])}{nearest(wrong[0], groups[key])}"
        if key not in known and key not in groups and not key.startswith("hydra"):
            return f"unknown key '{key}'{nearest(key, [*known, *groups])} (finetune {name} --help lists every key)"
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()[0]
    return f"{text} (a value with any of ,=()[]{{}}~ in it takes quotes inside quotes: 'key=\"value\"')"


def is_missing(value: Any) -> bool:
    """Say whether a composed value is one that a person has to give."""
    return isinstance(value, str) and value == "???"


def _groups(name: str) -> dict[str, dict[str, str]]:
    """Return the config groups a command uses: their options, each with the comment that opens its file."""
    folders = sorted(path for path in conf_dir().iterdir() if path.name in COMMANDS[name].schema.model_fields)
    return {
        folder.name: {option.stem: _opening_comment(option) for option in sorted(folder.glob("*.yaml"))}
        for folder in folders
        if folder.is_dir()
    }


def _opening_comment(file: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    # `# @package` is Hydra's, and says nothing to a person
    return " ".join(line.removeprefix("#").strip() for line in lines if not line.startswith("# @package"))


def _listed(group: str, options: dict[str, str]) -> list[str]:
    """Return the lines of a group's help; presets stand before the options that are one operation each."""
    lines = [f"{group}="]
    presets = [option for option in options if options[option].startswith("Preset.")]
    for option in dict.fromkeys((*presets, *options)):
        margin = f"  {option:<17}"
        lines += textwrap.wrap(options[option], HELP_WIDTH, initial_indent=margin, subsequent_indent=" " * len(margin))
    if presets:
        lines.append(f"  a list adds them up, in its order: '{group}=[{presets[0]},{[*options][-1]}]'")
    return [*lines, ""]


def overview() -> str:
    lines = ["usage: finetune <command> [key=value ...]", ""]
    lines += [f"  {name:<10}{(command.schema.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    lines += ["", "finetune <command> --help lists its keys; --cfg job shows what a command line composes to."]
    return "\n".join(lines)


def help_of(name: str) -> str:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        defaults = compose(name)
    schema = COMMANDS[name].schema
    lines = [f"finetune {name} [key=value ...]", "", (schema.__doc__ or "").strip(), ""]
    for group, options in _groups(name).items():
        lines += _listed(group, options)
    lines.append("keys:")
    for key, meaning in describe(schema).items():
        # masked and resolved by hand: a mandatory key has no value to select
        raw = OmegaConf.to_container(defaults, resolve=True, throw_on_missing=False)
        value: Any = raw
        for part in key.split("."):
            value = value[part]
        shown = "(required)" if is_missing(value) else f"[{'null' if value is None else value}]"
        lines.append(f"  {key} {shown}\n      {meaning}")
    lines += ["", "--multirun runs every combination of comma-separated values, each in a numbered folder of output."]
    return "\n".join(lines)

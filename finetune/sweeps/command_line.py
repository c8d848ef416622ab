"""What a command line says of several runs: the flag --multirun, values to take in turn, a sweeper, a launcher."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.errors import FinetuneError

FLAGS = {"--multirun", "-m"}
# what only several runs have
OF_SWEEPS = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher")


def is_sweep(arguments: Sequence[str]) -> bool:
    return not FLAGS.isdisjoint(arguments)


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Put flags and their values before all key=value, between which Hydra does not take them."""
    return sorted(arguments, key=lambda word: "=" in word and not word.startswith("-"))


def require_one_run(words: Sequence[str], command: str) -> None:
    """Raise FinetuneError where words without --multirun make several runs, or say how; command: what to type then."""
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if key.startswith(OF_SWEEPS):
            raise FinetuneError(f"{word} is about several runs, which take --multirun:\n  {command}")
        if equals and _is_several(word):
            raise FinetuneError(
                f"{word} gives several values, and a run for each takes --multirun:\n  {command}\n"
                f"as one value it is a list, {key}=[{value}], or text with quotes inside quotes, '{key}=\"{value}\"'"
            )


def _is_several(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        # it will say so itself, and where
        return False

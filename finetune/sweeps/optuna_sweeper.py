"""hydra/sweeper=optuna: each run's values follow from the validation accuracies of the runs before.

A sweeper of our own, as the one that Hydra's makers publish needs an Optuna of 2021 and numbers runs anew each time.
Run n is trial n of a study in the sweep's folder. What a trial tries is a function of (seed, n, the results so far), so
the same command goes on with a sweep that was killed as if nothing had happened.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STORAGE = "optuna.db"
ASKED = "asked"


def register() -> None:
    """Make the sweeper known to Hydra; raises FinetuneError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise FinetuneError("hydra/sweeper=optuna needs the package optuna: pip install 'finetune-service[sweep]'")
    known = Plugins.instance()
    # Hydra takes sweepers from a package of this name only, which is there if any of its own plugins is installed
    try:
        package = import_module("hydra_plugins")
    except ModuleNotFoundError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    package.finetune = sys.modules[__name__]  # type: ignore[attr-defined]
    OptunaSweeper.__module__ = "hydra_plugins.finetune"
    known.register(OptunaSweeper)


class OptunaSweeper(Sweeper):
    """n_trials: how many runs the sweep has in all; n_jobs: how many are started at once, where the launcher can."""

    def __init__(self, n_trials: int, n_jobs: int, seed: int) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.folder = Path(config.hydra.sweep.dir).expanduser()
        self.launch = (
            Plugins.instance()
            .instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
            .launch
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run what was begun and not finished, then new trials up to `n_trials`."""
        parsed = self.parser.parse_overrides(arguments)
        fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
        swept = [override for override in parsed if override.is_sweep_override()]
        space = {override.get_key_element(): distribution(override) for override in swept}
        if not space:
            raise FinetuneError(
                "hydra/sweeper=optuna has nothing to search: give a key several values or an interval, such as "
                "'optimizer.learning_rate=tag(log,interval(1e-5,1e-2))'"
            )
        study = open_study(self.folder, [override.input_line or "" for override in parsed])
        tried: set[int] = set()
        while trials := self._next(study, space, tried):
            overrides = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            self.validate_batch_is_legal(overrides)
            returns = self.launch(overrides, initial_job_idx=trials[0].number)
            for trial, done in zip(trials, returns, strict=True):
                tried.add(trial.number)
                value = float(done.return_value)
                # a run that failed stays open, and the same command tries it again
                if not math.isnan(value):
                    study.tell(trial.number, value)

    def _next(self, study: Study, space: dict[str, BaseDistribution], tried: set[int]) -> list[FrozenTrial]:
        """Return the next trials, whose numbers follow each other."""
        from optuna.trial import TrialState

        trials = study.get_trials()
        left = [trial for trial in trials if trial.state == TrialState.RUNNING and trial.number not in tried]
        if left:
            in_turn = takewhile(lambda at: at[1].number == at[0], enumerate(left, left[0].number))
            return [trial for _, trial in in_turn][: self.n_jobs]
        new = range(len(trials), min(self.n_trials, len(trials) + self.n_jobs))
        for number in new:
            study.sampler = self._sampler(number)
            study.ask(space)
        asked: list[FrozenTrial] = study.get_trials()[new.start : new.stop]
        return asked

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import TPESampler

        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        # runs that are started together keep away from each other
        return TPESampler(seed=seed, constant_liar=self.n_jobs > 1)


def distribution(override: Override) -> BaseDistribution:
    """Return what Hydra's words for several values mean to Optuna."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if isinstance(value, RangeSweep) and all(isinstance(end, int) for end in (value.start, value.stop, value.step)):
        numbers = list(value.range())
        return IntDistribution(numbers[0], numbers[-1], step=int(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def open_study(folder: Path, words: Iterable[str]) -> Study:
    """Open the sweep's study, or begin it; raises FinetuneError where the folder holds one of another search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / STORAGE}", study_name="finetune", direction="maximize", load_if_exists=True
    )
    asked = dict(word.partition("=")[::2] for word in words if not word.startswith("output="))
    before = study.user_attrs.get(ASKED, asked)
    if before != asked:
        key = next(key for key in (*before, *asked) if before.get(key) != asked.get(key))
        there, here = before.get(key, "not given"), asked.get(key, "not given")
        raise FinetuneError(
            f"output={folder} holds another sweep: {key} is {there} there and {here} here; "
            "choose another output=, or delete that folder"
        )
    study.set_user_attr(ASKED, asked)
    return study

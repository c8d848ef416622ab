"""Where a run can be followed beside its own folder: TensorBoard, MLflow and W&B, by Lightning's loggers.

Without an address or a key from the environment, all three keep to the run folder and ask nothing of anybody.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from finetune.config import LoggerConfig
from finetune.errors import FinetuneError, first_line
from finetune.files import digest, write_json
from finetune.run import Run

log = logging.getLogger(__name__)

Outcome = Literal["success", "failed"]

# They report their use to their makers unless told not to; what is trained here concerns nobody else.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING", "WANDB_ERROR_REPORTING": "false"}
NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
# What a resumed run goes on with.
STATE = "loggers.json"


class Tracker(ABC):
    """One logged run. key: what it is found again by; where: what a person opens or types; begun: it is resumed."""

    logger: Logger
    key: str
    where: str

    def __init__(self, begun: bool) -> None:
        self.begun = begun

    def tell(self, figures: dict[str, float], step: int) -> None:
        self.logger.log_metrics(figures, step)

    def conclude(self, figures: dict[str, float], step: int) -> None:
        self.tell(figures, step)

    @abstractmethod
    def show(self, name: str, picture: Path) -> None: ...

    def close(self, outcome: Outcome) -> None:
        self.logger.finalize(outcome)


class _TensorBoard(Tracker):
    logger: TensorBoardLogger

    def __init__(self, config: LoggerConfig, run: Run, parameters: Mapping[str, Any], key: str | None) -> None:
        super().__init__(key is not None)
        self.key, self.parameters = "tensorboard", dict(parameters)
        self.logger = TensorBoardLogger(run.path, name=self.key, version="", default_hp_metric=False)
        self.logger.log_hyperparams(self.parameters)
        self.where = f"tensorboard --logdir {run.path / self.key}"

    def tell(self, figures: dict[str, float], step: int) -> None:
        super().tell(figures, step)
        # a killed run has told all that metrics.csv has
        self.logger.experiment.flush()

    def conclude(self, figures: dict[str, float], step: int) -> None:
        # its table of runs takes parameters only together with figures
        self.logger.log_hyperparams(self.parameters, figures, step)

    def show(self, name: str, picture: Path) -> None:
        with Image.open(picture) as opened:
            self.logger.experiment.add_image(name, np.asarray(opened), 0, dataformats="HWC")


class _MLflow(Tracker):
    logger: MLFlowLogger

    def __init__(self, config: LoggerConfig, run: Run, parameters: Mapping[str, Any], key: str | None) -> None:
        super().__init__(key is not None)
        logging.getLogger("pytorch_lightning.loggers.mlflow").setLevel(logging.ERROR)
        place = run.path.resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        address = server or f"sqlite:///{place / 'mlflow.db'}"
        self.logger = MLFlowLogger(
            config.project,
            run_name=place.name,
            tracking_uri=address,
            artifact_location=None if server else str(place / "mlflow"),
            run_id=key,
        )
        run_id = self.logger.run_id
        assert run_id is not None
        self.key = run_id
        self.logger.experiment.update_run(run_id, status="RUNNING")
        self.logger.log_hyperparams(dict(parameters))
        self.where = f"{address}, run {run_id}"

    def show(self, name: str, picture: Path) -> None:
        self.logger.experiment.log_artifact(self.key, str(picture))


class _Wandb(Tracker):
    logger: WandbLogger

    def __init__(self, config: LoggerConfig, run: Run, parameters: Mapping[str, Any], key: str | None) -> None:
        super().__init__(key is not None)
        import wandb

        self.key = key or uuid4().hex[:12]
        # with no key there would be a prompt
        online = "WANDB_API_KEY" in os.environ and os.environ.get("WANDB_MODE", "online") == "online"
        experiment = wandb.init(
            project=config.project,
            name=run.path.resolve().name,
            dir=run.path,
            id=self.key,
            resume="allow",
            mode="online" if online else "offline",
            # neither the terminal, the code nor what the machine is doing is sent along
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        # the axis that its logger writes
        experiment.define_metric("trainer/global_step")
        experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.logger = WandbLogger(experiment=experiment)
        self.logger.log_hyperparams(dict(parameters))
        self.where = experiment.url if online and experiment.url else f"wandb sync {Path(experiment.dir).parent}"

    def show(self, name: str, picture: Path) -> None:
        self.logger.log_image(name, [str(picture)])

    def close(self, outcome: Outcome) -> None:
        super().close(outcome)
        self.logger.experiment.finish(exit_code=0 if outcome == "success" else 1)


TRACKERS: dict[str, type[_TensorBoard | _MLflow | _Wandb]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _Wandb,
}


def require_loggers(config: LoggerConfig) -> None:
    """Raise FinetuneError where a chosen logger's packages are not installed."""
    for name in _chosen(config):
        lacking = [package for package in NEEDS[name] if find_spec(package) is None]
        if lacking:
            raise FinetuneError(
                f"logger={name} needs packages that are not installed ({', '.join(lacking)}): "
                "pip install 'finetune-service[tracking]'"
            )


def open_trackers(config: LoggerConfig, run: Run, parameters: Mapping[str, Any]) -> dict[str, Tracker]:
    """Start the chosen loggers, or go on with what they logged of this run before it was interrupted.

    parameters: nested, of numbers, texts and lists. Raises FinetuneError where one cannot be started.
    """
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    fingerprint = digest(json.dumps(parameters, sort_keys=True))
    state = _read_state(run)
    keys = state["keys"] if state.get("parameters") == fingerprint else {}
    trackers: dict[str, Tracker] = {}
    for name in _chosen(config):
        try:
            trackers[name] = TRACKERS[name](config, run, parameters, keys.get(name))
        except Exception as error:  # each raises its own types, and those of what it talks to
            raise FinetuneError(f"logger={name} cannot be started: {first_line(error)}") from error
        log.info("logger=%s: %s", name, trackers[name].where)
        keys = {**keys, name: trackers[name].key}
        write_json(run.path / STATE, {"parameters": fingerprint, "keys": keys})
    return trackers


def _chosen(config: LoggerConfig) -> list[str]:
    return [name for name in NEEDS if getattr(config, name)]


def _read_state(run: Run) -> dict[str, Any]:
    place = run.path / STATE
    return dict(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else {}

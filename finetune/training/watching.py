"""What can be watched while a run goes on: metrics.csv always, and the loggers that were chosen."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path

from finetune.config import TrainConfig
from finetune.files import replacing
from finetune.run import Result, Run
from finetune.training.fitted import Metrics
from finetune.training.tracking import Outcome, Tracker, open_trackers

log = logging.getLogger(__name__)


class Watch:
    """Takes a run's rows as they come. What a row's number has been told before an interruption is not told again."""

    def __init__(self, table: Path, trackers: dict[str, Tracker]) -> None:
        self.table, self.trackers = table, trackers
        written = _count_rows(table)
        self.told = {name: written if tracker.begun else 0 for name, tracker in trackers.items()}

    def update(self, rows: Sequence[Metrics]) -> None:
        """Take all rows there are so far; metrics.csv holds them when this returns, and is whole at any moment."""
        for name in list(self.trackers):
            for step in range(self.told[name], len(rows)):
                figures = {key: value for key, value in rows[step].items() if not isinstance(value, str)}
                self._ask(name, methodcaller("tell", figures, step))
            self.told[name] = max(self.told[name], len(rows))
        _write(self.table, rows)

    def show(self, name: str, picture: Path) -> None:
        for tracker in list(self.trackers):
            self._ask(tracker, methodcaller("show", name, picture))

    def conclude(self, result: Result) -> None:
        """Log what the run came to, under `result/`."""
        figures = {f"result/{name}": value for name, value in _numbers(result.model_dump())}
        for name in list(self.trackers):
            self._ask(name, methodcaller("conclude", figures, self.told[name]))

    def close(self, outcome: Outcome) -> None:
        for name in list(self.trackers):
            self._ask(name, methodcaller("close", outcome))

    def _ask(self, name: str, request: Callable[[Tracker], None]) -> None:
        """A server that goes away must not take hours of training with it: that is said, once."""
        if name not in self.trackers:
            return
        try:
            request(self.trackers[name])
        except Exception as error:  # each raises its own types, and those of what it talks to
            del self.trackers[name]
            log.warning(
                "logger=%s failed (%s: %s); training goes on without it, metrics.csv has every figure",
                name,
                type(error).__name__,
                (str(error).splitlines() or [""])[0],
            )


@contextmanager
def watching(config: TrainConfig, run: Run) -> Iterator[Watch]:
    """Open the loggers for as long as a run goes on, and tell them how it ended."""
    parameters = config.model_dump(mode="json", exclude={"logger", "output"})
    watch = Watch(run.metrics, open_trackers(config.logger, run, parameters))
    try:
        yield watch
    except BaseException:
        watch.close("failed")
        raise
    watch.close("success")


def _numbers(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, float):
            yield prefix + name, value


def _count_rows(table: Path) -> int:
    if not table.is_file():
        return 0
    with table.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))


def _write(table: Path, rows: Sequence[Metrics]) -> None:
    with replacing(table) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)

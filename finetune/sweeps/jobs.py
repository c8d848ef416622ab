"""What the runs of a --multirun came to: a note for each in the sweep's folder, wherever it ran, and a table of all."""

from __future__ import annotations

import json
import logging
import math
import statistics
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune.config import NO_OTHER_RUN
from finetune.errors import FinetuneError, SweepError
from finetune.files import make_folder, write_json
from finetune.sweeps.command_line import is_sweep

log = logging.getLogger(__name__)

NOTES = "jobs"
WRONG_INPUT = 2
UNFINISHED = "it ended without a word"
# what repeats a run instead of changing what it does
REPEATS = {"seed", "data.fold"}


class Job(NamedTuple):
    """One run of a sweep. overrides: by key; failure: empty if there was none; result: of result.json."""

    number: int
    overrides: dict[str, str]
    failure: str
    exit_code: int
    result: dict[str, Any]

    @property
    def judged_by(self) -> str:
        return "accuracy" if self.result["imbalance"] == "none" else "balanced_accuracy"

    @property
    def objective(self) -> float:
        """The validation accuracy that its epochs and heads were chosen by; NaN where it failed."""
        return float(self.result[f"val_{self.judged_by}"]) if self.result else math.nan

    @property
    def test(self) -> float | None:
        value = self.result[f"test_{self.judged_by}"]
        return None if value is None else float(value)


@dataclass(frozen=True)
class Sweep:
    """The runs of one `finetune train --multirun`. folder: where those of other commands may lie too.

    asked: the words that decide which runs those are; a command with the same ones is the same sweep.
    """

    folder: Path
    asked: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Sweep | None:
        """Return the sweep of a command line; None where that makes one run, or names no folder."""
        outputs = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("output=")]
        if not is_sweep(arguments) or not outputs:
            return None
        words = [word for word in arguments if not word.startswith(("-", "hydra"))]
        return cls(Path(outputs[-1]).expanduser(), tuple(f"{k}={v}" for k, v in sorted(_deciding(words).items())))

    def begin(self, place: int, words: Sequence[str]) -> int:
        """Return the number of the run with these words, key=value: the one that it had before, or a free one.

        place: its place in this command, and its number where no other run has that.
        """
        # one of training's packages, which a server's image lacks
        from filelock import FileLock

        # runs may begin in several processes at once
        with FileLock(make_folder(self.folder / NOTES) / ".lock"):
            there = {number: self._noted(number)["overrides"] for number in self._numbers()}
            alike = [number for number, before in there.items() if _deciding(before) == _deciding(words)]
            free = place if place not in there else 1 + max(there)
            number = place if place in alike else min(alike, default=free)
            self._note(number, words, UNFINISHED, 1)
        return number

    def end(self, number: int, words: Sequence[str], failure: Exception | None) -> Job:
        """Note how a run ended."""
        code, said = 0, ""
        if isinstance(failure, FinetuneError):
            code, said = failure.exit_code, str(failure)
        elif failure is not None:
            code, said = 1, "".join(traceback.format_exception(failure))
        self._note(number, words, said, code)
        return self._job(number)

    def describe(self) -> str:
        """Return the table of the runs, best first."""
        jobs = self._jobs()
        done = sorted((job for job in jobs if job.result), key=lambda job: -job.objective)
        swept = _swept(jobs)
        lines = _table(done, swept) if done else []
        if len(done) > 1 and set(swept) <= REPEATS:
            lines += ["", _spread(done)]
        return "\n".join(lines)

    def require_done(self) -> None:
        """Raise SweepError with every run that failed."""
        jobs = self._jobs()
        failed = [job for job in jobs if job.failure]
        if failed:
            lines = [f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again:"]
            lines += [f"  run {job.number} ({_words(job, _swept(jobs))}): {_reason(job)}" for job in failed]
            code = WRONG_INPUT if all(job.exit_code == WRONG_INPUT for job in failed) else 1
            raise SweepError("\n".join(lines), code)

    def _jobs(self) -> list[Job]:
        return [self._job(number) for number in self._numbers() if self._noted(number).get("asked") == [*self.asked]]

    def _job(self, number: int) -> Job:
        noted = self._noted(number)
        overrides = dict(word.partition("=")[::2] for word in noted["overrides"])
        finished = self.folder / str(number) / "result.json"
        # a failed run's folder may hold the result of another one
        result = {} if noted["failure"] else json.loads(finished.read_text(encoding="utf-8"))
        return Job(number, overrides, noted["failure"], noted["exit_code"], result)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / NOTES).glob("*.json"))

    def _noted(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self._notes(number).read_text(encoding="utf-8")))

    def _note(self, number: int, words: Sequence[str], failure: str, code: int) -> None:
        noted = {"asked": self.asked, "overrides": list(words), "failure": failure, "exit_code": code}
        write_json(self._notes(number), noted)

    def _notes(self, number: int) -> Path:
        return self.folder / NOTES / f"{number}.json"


def begin_job(sweep: Sweep | None) -> int | None:
    """Return the number of the run that Hydra is about to have done; None where that is the only one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return None
    place: int = hydra_config.job.num
    return place if sweep is None else sweep.begin(place, hydra_config.overrides.task)


def end_job(sweep: Sweep, number: int, failure: Exception | None) -> float:
    """Note how the run ended that Hydra has just had done; return what a sweeper searches by, NaN after a failure."""
    from hydra.core.hydra_config import HydraConfig

    job = sweep.end(number, HydraConfig.get().overrides.task, failure)
    if job.failure:
        log.error("run %d failed: %s", number, job.failure)
    return job.objective


def _deciding(words: Sequence[str]) -> dict[str, str]:
    """Return the values of the keys that decide what a run is."""
    values = dict(word.partition("=")[::2] for word in words)
    return {key: value for key, value in values.items() if key.partition(".")[0] not in NO_OTHER_RUN}


def _swept(jobs: Sequence[Job]) -> list[str]:
    """Return the keys in which the runs differ."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def _words(job: Job, swept: Sequence[str]) -> str:
    return " ".join(f"{key}={job.overrides.get(key, '')}" for key in swept)


def _reason(job: Job) -> str:
    """Return the line that says most: the first of a message, the last of a traceback."""
    lines = job.failure.strip().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _table(done: Sequence[Job], swept: Sequence[str]) -> list[str]:
    kind = done[0].judged_by.replace("_", " ")
    rows = [["run", *swept, f"validation {kind}", f"test {kind}", "seconds"]]
    for job in done:
        figures = [_percent(job.objective), _percent(job.test), f"{job.result['train_seconds']:.0f}"]
        rows.append([str(job.number), *(_shortened(job.overrides.get(key, "")) for key in swept), *figures])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shortened(value: str) -> str:
    """Return a number that was drawn, as far as a person compares it."""
    try:
        return value if len(value) <= 8 else f"{float(value):.4g}"
    except ValueError:
        return value


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _spread(done: Sequence[Job]) -> str:
    tests = [job.test for job in done if job.test is not None]
    parts = {"validation": [job.objective for job in done], "test": tests if len(tests) == len(done) else []}
    figures = [
        f"{split} {100 * statistics.mean(shares):.1f} ± {100 * statistics.stdev(shares):.1f} %"
        for split, shares in parts.items()
        if shares
    ]
    return f"mean and standard deviation of {len(done)} runs: {', '.join(figures)}"

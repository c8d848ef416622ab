"""What the runs of a --multirun came to: a note for each in the sweep's folder, wherever it ran, and a table of all."""

from __future__ import annotations

import json
import logging
import math
import statistics
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.errors import FinetuneError, SweepError
from finetune.files import write_json

log = logging.getLogger(__name__)

NOTES = "jobs"
WRONG_INPUT = 2
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


def sweep_folder(arguments: Sequence[str]) -> Path | None:
    """Return the folder of all runs of `finetune train --multirun`; None where there is one run only."""
    if not {"--multirun", "-m"} & set(arguments):
        return None
    outputs = [word.partition("=")[2].strip("'\"") for word in arguments if word.startswith("output=")]
    return Path(outputs[-1]).expanduser() if outputs else None


def note_job(sweep: Path, failure: Exception | None) -> float:
    """Note how the run ended that Hydra has just had done; return what a sweeper searches by, NaN after a failure."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    job = note(sweep, hydra_config.job.num, hydra_config.overrides.task, failure)
    if job.failure:
        log.error("run %d failed: %s", job.number, job.failure)
    return job.objective


def note(sweep: Path, number: int, words: Sequence[str], failure: Exception | None) -> Job:
    """Note how run `number` of a sweep ended; words: key=value."""
    code, said = 0, ""
    if isinstance(failure, FinetuneError):
        code, said = failure.exit_code, str(failure)
    elif failure is not None:
        code, said = 1, "".join(traceback.format_exception(failure))
    write_json(_notes(sweep, number), {"overrides": list(words), "failure": said, "exit_code": code})
    return _job(sweep, number)


def describe_sweep(sweep: Path) -> str:
    """Return the table of a sweep's runs, best first."""
    jobs = _jobs(sweep)
    done = sorted((job for job in jobs if job.result), key=lambda job: -job.objective)
    swept = _swept(jobs)
    lines = _table(done, swept) if done else []
    if len(done) > 1 and set(swept) <= REPEATS:
        lines += ["", _spread(done)]
    return "\n".join(lines)


def require_done(sweep: Path) -> None:
    """Raise SweepError with every run that failed."""
    jobs = _jobs(sweep)
    failed = [job for job in jobs if job.failure]
    if failed:
        lines = [f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again:"]
        lines += [f"  run {job.number} ({_words(job, _swept(jobs))}): {_reason(job)}" for job in failed]
        code = WRONG_INPUT if all(job.exit_code == WRONG_INPUT for job in failed) else 1
        raise SweepError("\n".join(lines), code)


def _jobs(sweep: Path) -> list[Job]:
    return [_job(sweep, number) for number in sorted(int(path.stem) for path in (sweep / NOTES).glob("*.json"))]


def _notes(sweep: Path, number: int) -> Path:
    return sweep / NOTES / f"{number}.json"


def _job(sweep: Path, number: int) -> Job:
    noted = json.loads(_notes(sweep, number).read_text(encoding="utf-8"))
    overrides = dict(word.partition("=")[::2] for word in noted["overrides"])
    finished = sweep / str(number) / "result.json"
    # a failed run's folder may hold the result of another one
    result = {} if noted["failure"] else json.loads(finished.read_text(encoding="utf-8"))
    return Job(number, overrides, noted["failure"], noted["exit_code"], result)


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

"""Kill a training again and again, then compare what it made with what an undisturbed one made.

python tests/training/random_kills.py FOLDER [--kills 20] [--seed 0] [key=value ...]

FOLDER gets two runs, `whole` and `killed`, of 300 textile photos; keys of `finetune train` change what is trained. A
third of the kills come at any time, a third while a checkpoint is being written, a third between two of them. Exits
with 1 where the weights, the metrics or the result differ in a single bit, times aside.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# All that draws random numbers or keeps a state of its own.
TRAINED = (
    "freeze=gradual",
    "freeze.epochs_per_group=0.2",
    "head.dropout=0.3",
    "model.drop_path=0.3",
    "augment=[standard,mixup]",
    "trainer.accumulate=3",
    "trainer.ema_decay=0.99",
    "trainer.soup=3",
    "trainer.checkpoint_minutes=0.01",
    "trainer.max_epochs=36",
    "trainer.patience=36",
    "trainer.accelerator=cpu",
    "data.image_size=64",
    "data.batch_size=16",
    "data.num_workers=2",
)
TIMES = ("train_seconds", "images_per_second")
# about what a process needs to its first step
STARTED_S = 15.0
POLL_S = 0.001


@dataclass(frozen=True)
class Kill:
    """When to kill a process: `after_s` seconds after it began to write that many checkpoints, or after its start."""

    writes: int
    after_s: float


def choose_kill(number: int, draws: random.Random) -> Kill:
    """In turn: at any time at all, while a checkpoint is written, and somewhere between two of them."""
    match number % 3:
        case 0:
            return Kill(0, draws.uniform(0, STARTED_S))
        case 1:
            return Kill(draws.randint(1, 3), 0)
        case _:
            return Kill(draws.randint(1, 3), draws.uniform(0, 1))


def command(photos: Path, output: Path, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={output}", *words]


def half_written(output: Path) -> set[Path]:
    """Return checkpoints that wait to be renamed."""
    return set((output / "checkpoints").glob(".*.ckpt"))


def run_and_kill(words: list[str], output: Path, kill: Kill) -> str:
    """Start the training and kill it; return what it was doing, with "writing" in it if that was a checkpoint."""
    log = output.with_suffix(".log")
    before = half_written(output)
    seen, since = set(before), time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(words, stdout=file, stderr=file)
        while child.poll() is None:
            if len(seen - before) < kill.writes:
                seen |= half_written(output)
                since = time.monotonic()
            if len(seen - before) >= kill.writes and time.monotonic() - since >= kill.after_s:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(POLL_S)
        code = child.wait()
    text = log.read_text()
    if code != -signal.SIGKILL:
        raise SystemExit(f"it ended with exit code {code} before it could be killed; give it more epochs\n{text}")
    last_line = (text.splitlines() or ["nothing"])[-1]
    return ", ".join([last_line, *(f"writing {path.name}" for path in half_written(output) - before)])


def kill_often(words: list[str], output: Path, kills: int, draws: random.Random) -> list[str]:
    """Kill a training that often, then let it end; return what it was doing each time."""
    doing = []
    for number in range(kills):
        doing.append(run_and_kill(words, output, choose_kill(number, draws)))
        print(f"kill {number + 1:2}: {doing[-1]}", flush=True)
    subprocess.run(words, check=True)
    return doing


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run must repeat: the bytes of its weights, its rows of metrics, its result."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": (run / "weights.safetensors").read_bytes(),
        "metrics": rows,
        "result": {key: value for key, value in result.items() if key not in TIMES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times at which it is killed")
    parser.add_argument("words", nargs="*", help="keys of finetune train")
    given = parser.parse_intermixed_args()
    photos, whole, killed = (given.folder / name for name in ("photos", "whole", "killed"))
    subprocess.run([sys.executable, ROOT / "scripts/sample_data.py", photos, "100"], check=True)
    for run in (whole, killed):
        shutil.rmtree(run, ignore_errors=True)
    words = (*TRAINED, *given.words)
    subprocess.run(command(photos, whole, words), check=True)
    doing = kill_often(command(photos, killed, words), killed, given.kills, random.Random(given.seed))
    expected, got = outcome(whole), outcome(killed)
    different = [name for name in expected if expected[name] != got[name]]
    writing = sum("writing" in said for said in doing)
    print(f"{len(doing)} kills, {writing} of them while a checkpoint was written: ", end="")
    print(f"{', '.join(different)} differ" if different else "bit-identical weights, metrics and result")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.run import FinishedRun
from tests.conftest import TINY, paint_folder, run_finetune


@pytest.fixture
def finished(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def refusal(path: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        FinishedRun(path)
    return str(caught.value)


def test_a_result_of_another_version_is_refused_with_what_differs(finished: Path) -> None:
    values = json.loads((finished / "result.json").read_text())
    del values["imbalance"], values["val_balanced_accuracy"]
    (finished / "result.json").write_text(json.dumps(values | {"mood": "good"}))
    assert refusal(finished) == (
        f"{finished / 'result.json'} was written by another version of finetune-service: it lacks "
        "val_balanced_accuracy, lacks imbalance, has an unknown mood; use that version, or train again with another "
        "output="
    )


@pytest.mark.parametrize("text", ["", "{", '{"val_accuracy": "high"}'])
def test_a_damaged_result_is_named(finished: Path, text: str) -> None:
    (finished / "result.json").write_text(text)
    assert refusal(finished).startswith(f"{finished / 'result.json'} is damaged: ")


def test_a_run_that_was_killed_while_layers_train_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = [f"data.root={paint_folder(tmp_path / 'my photos')}", f"output={output}", *TINY, "freeze=lp_ft"]
    words += ["trainer.max_epochs=2", "trainer.accelerator=cpu", "data.batch_size=8"]
    child = subprocess.Popen([sys.executable, "-m", "finetune", "train", *words])
    while not (output / "weights.safetensors").exists() and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    command = shlex.join(["finetune", "train", *words])
    for asked in (["evaluate", f"run={output}"], ["export", f"run={output}", f"output={tmp_path / 'models'}"]):
        capsys.readouterr()
        assert run(asked) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[:2] == [
            f"finetune {asked[0]}: run={output} has not finished; the command that began it goes on from where it was:",
            f"  {command}",
        ]
        assert said[2].startswith("with freeze=head and another output= it makes")
    # both ways are open
    assert run([*shlex.split(command)[1:], "freeze=head", f"output={tmp_path / 'head'}"]) == 0
    assert "already finished" not in capsys.readouterr().out
    assert run(["export", f"run={tmp_path / 'head'}", f"output={tmp_path / 'models'}"]) == 0
    assert run(shlex.split(command)[1:]) == 0
    assert run(["evaluate", f"run={output}"]) == 0


def test_how_a_run_was_asked_for_makes_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"data.root={paint_folder(tmp_path / 'photos')}", f"output={tmp_path / 'run'}", *TINY]
    assert run(words) == 0
    assert run([*words, "seed=0"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_the_configuration_of_a_run_trains_the_same_again(tmp_path: Path) -> None:
    words = [f"data.root={paint_folder(tmp_path / 'photos')}", "output=first", *TINY, "trainer.max_epochs=1"]
    assert run_finetune("train", *words, "freeze=partial", cwd=tmp_path).returncode == 0
    again = ["--config-dir", "first", "--config-name", "config", "output=again"]
    done = run_finetune("train", *again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    # Hydra leaves nothing of its own
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "first", "again"}
    assert "[finetune" not in done.stderr

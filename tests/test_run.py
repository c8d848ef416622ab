from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.run import FinishedRun


@pytest.fixture
def finished(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def refusal(run: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        FinishedRun(run)
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

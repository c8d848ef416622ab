from __future__ import annotations

import functools
from pathlib import Path

import pytest
import safetensors.torch
import torch

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.training import compiling
from finetune.training.compiling import compiled
from tests.conftest import TINY
from tests.models.test_freezing import build

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_gradual_training_compiled_ends_in_the_weights_of_one_that_was_not(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what is traced and when it is traced anew is the same; making machine code of it takes minutes
    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend="eager"))
    resets: list[int] = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: (resets.append(1), reset()))
    words = ["train", f"data.root={photos}", *TINY, "freeze=gradual", "freeze.epochs_per_group=1", "data.batch_size=5"]
    words += ["trainer.max_epochs=3", "trainer.accelerator=cpu", "head.dropout=0.3", "model.drop_stages=2"]
    found = []
    for name in ("false", "true"):
        output = tmp_path / name
        assert run([*words, f"output={output}", f"trainer.compile={name}"]) == 0
        found.append(safetensors.torch.load_file(output / "weights.safetensors"))
    # two times other layers began to train
    assert len(resets) == 2
    plainly, again = found
    assert plainly.keys() == again.keys()
    for name, tensor in plainly.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_the_classifier_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build("test_resnet")
    names = list(classifier.state_dict())
    compiled(classifier, CPU)
    assert list(classifier.state_dict()) == names


def test_without_a_compiler_it_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FinetuneError, match=r"needs a compiler, and g\+\+ is not here; install one"):
        compiled(build("test_resnet"), CPU)
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(FinetuneError, match="icpx is not here"):
        compiled(build("test_resnet"), CPU)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune.cli import run
from finetune.training.sparsity import shrink_weights, zero_share
from tests.conftest import TINY
from tests.training.test_train import weights


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 2), st.integers(0, 100))
def test_gradient_steps_and_shrinking_come_to_the_known_minimum(l1: float, seed: int) -> None:
    """Of |w - b|^2 / 2 + l1 |w| it is b, moved by l1 towards 0."""
    wanted = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    weight = nn.Parameter(torch.zeros(4, 5))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        ((weight - wanted) ** 2).sum().div(2).backward()
        optimizer.step()
        shrink_weights(optimizer, l1)
    minimum = wanted.sign() * (wanted.abs() - l1).clamp_min(0)
    assert torch.allclose(weight, minimum, atol=1e-5)
    # zeros are zeros, not small numbers
    clearly = wanted.abs() < l1 - 1e-3
    assert bool((weight[clearly] == 0).all())


def test_biases_norms_and_what_is_frozen_do_not_shrink() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    # groups of two rates: each shrinks by its own
    groups = [{"params": [module[0].weight], "lr": 0.1}, {"params": [module[0].bias, *module[1:].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    module(torch.randn(4, 3)).sum().backward()
    shrink_weights(optimizer, 0.5)
    after = dict(module.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"0.weight"}
    assert torch.equal(after["0.weight"], nn.functional.softshrink(before["0.weight"], 0.05))


def test_the_share_of_zeros_is_that_of_trained_weights() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight[:2] = 0
        module[1].weight.zero_()
        module[0].bias.zero_()
    assert zero_share(module) == 16 / 24
    module[1].requires_grad_(False)
    assert zero_share(module) == 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_with_l1_ends_with_zeros_and_says_how_many(
    optimizer: str, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["train", f"data.root={photos}", *TINY, "freeze=partial", "freeze.top_groups=1", "trainer.max_epochs=2"]
    words += [f"optimizer={optimizer}", "optimizer.learning_rate=0.01"]
    caplog.set_level("INFO", "finetune")
    for name, l1 in (("with", 0.5), ("without", 0)):
        assert run([*words, f"output={tmp_path / name}", f"optimizer.l1={l1}"]) == 0
    share = json.loads((tmp_path / "with" / "result.json").read_text())["zero_share"]
    assert share > 0.01
    assert f"optimizer.l1=0.5: {100 * share:.1f} % of the trained weights are exactly 0" in caplog.text
    planned = ("backbone.network.layer4", "head.linear")
    trained = [t for name, t in weights(tmp_path / "with").items() if name.startswith(planned) and t.ndim > 1]
    assert share == sum(int((t == 0).sum()) for t in trained) / sum(t.numel() for t in trained)
    assert json.loads((tmp_path / "without" / "result.json").read_text())["zero_share"] == 0

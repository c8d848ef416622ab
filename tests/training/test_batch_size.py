from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.training import batch_size
from finetune.training.batch_size import TrainingStep
from finetune.training.world import World
from tests.conftest import TINY
from tests.models.test_freezing import build, plan
from tests.training.test_optimizer import config


def step(classifier: Classifier, depth: str = "full", image_size: int = 64, processes: int = 1) -> TrainingStep:
    made, cpu = plan(classifier, depth, top_groups=1), torch.device("cpu")  # type: ignore[arg-type]
    world = World(local_size=processes)
    return TrainingStep(classifier, made, config(learning_rate="auto"), "32-true", image_size, cpu, world)


def sizes_by_memory(monkeypatch: pytest.MonkeyPatch, made: TrainingStep, most: int = 64) -> list[int]:
    sizes = []
    for megabytes in (64, 256, 1024, 4096):
        monkeypatch.setattr(batch_size, "available_bytes", lambda megabytes=megabytes: megabytes << 20)
        sizes.append(made.batch_size(most))
    return sizes


def test_more_memory_gives_larger_powers_of_two_up_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_by_memory(monkeypatch, step(build("test_resnet"), image_size=160))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 64
    assert all(size.bit_count() == 1 for size in sizes)


def test_frozen_layers_keep_nothing_and_leave_room_for_more_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build("test_resnet")
    full, top = (sizes_by_memory(monkeypatch, step(classifier, depth, 160), most=4096) for depth in ("full", "partial"))
    assert all(fewer < more for fewer, more in zip(full, top, strict=True))


def test_photos_of_twice_the_side_take_four_times_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build("test_resnet")
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 1 << 30)
    small, large = (step(classifier, image_size=side).batch_size(4096) for side in (96, 192))
    assert small == 4 * large


def test_processes_share_a_batch_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build("test_resnet")
    assert [step(classifier, processes=count).batch_size(64) for count in (1, 2, 3, 8)] == [64, 64, 48, 64]
    # two photos for each, however few there are
    assert [step(classifier, processes=count).batch_size(1) for count in (1, 2, 3)] == [2, 4, 6]
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 1 << 30)
    alone, shared = (step(classifier, image_size=160, processes=count) for count in (1, 4))
    size = alone.batch_size(4096)
    # each has the weights and what belongs to them
    assert size / 2 <= shared.batch_size(4096) <= size
    assert shared.holds(shared.batch_size(4096))
    assert not shared.holds(2 * size)


def test_where_not_even_two_photos_fit_it_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 1 << 20)
    with pytest.raises(FinetuneError, match="a step of 2 photos at 64 px does not fit the memory; use a smaller"):
        step(build("test_resnet")).batch_size(64)


def test_the_search_leaves_weights_statistics_and_random_states_alone() -> None:
    classifier = build("test_resnet")
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    trains = [parameter.requires_grad for parameter in classifier.parameters()]
    drawn = torch.get_rng_state()
    step(classifier, "partial").batch_size(64)
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    assert [parameter.requires_grad for parameter in classifier.parameters()] == trains
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_run_keeps_what_it_found(photos: Path, tmp_path: Path) -> None:
    words = [
        "train",
        f"data.root={photos}",
        f"output={tmp_path / 'run'}",
        *TINY,
        "freeze=partial",
        "data.batch_size=auto",
    ]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.test_fraction=0", "data.val_fraction=0.3"]
    assert run(words) == 0
    # an eighth of the photos at most, and never fewer than two
    assert json.loads((tmp_path / "run" / "batch_size.json").read_text()) == 2
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "batch_size.json").write_text("4")
    assert run(words) == 0
    assert json.loads((tmp_path / "run" / "batch_size.json").read_text()) == 4
    assert "batch_size: auto" in (tmp_path / "run" / "config.yaml").read_text()

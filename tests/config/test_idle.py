"""What a person types acts, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import run
from finetune.config import TrainConfig
from finetune.config.idle import RULES, idle_keys
from finetune.manual import conf_dir
from finetune.schema import describe
from tests.conftest import TINY, run_finetune, train_config

LAYERS = "freeze=partial, full, gradual or lp_ft"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the lines by which a command line is refused; there are no photos, so nothing was done before."""
    assert run(["train", "data.root=nowhere", "output=run", *words]) == 2
    assert not Path("run").exists()
    return capsys.readouterr().err.removeprefix("finetune train: ").splitlines()


@pytest.mark.parametrize(
    ("words", "way", "use"),
    [
        ("freeze=full freeze.groups=[0,1]", "with freeze=full", "freeze=partial"),
        ("freeze=gradual freeze.groups=[0,1]", "with freeze=gradual", "freeze=partial"),
        ("freeze=lp_ft freeze.top_groups=2", "with freeze=lp_ft", "freeze=partial"),
        ("freeze=partial freeze.groups=[0,1] freeze.top_groups=2", "with freeze.groups=[0,1]", "freeze.groups=null"),
        ("freeze=full freeze.epochs_per_group=1", "with freeze=full", "freeze=gradual"),
        ("freeze=full freeze.full_from=9", "with freeze=full", "freeze=auto"),
        ("budget_minutes=3 freeze.head_below=9", "with budget_minutes=3", "freeze=auto without a time limit"),
        ("freeze=head trainer.clip_norm=1", "with freeze=head", LAYERS),
        ("freeze=head trainer.accumulate=2", "with freeze=head", LAYERS),
        ("freeze=head model.drop_path=0.1", "with freeze=head", LAYERS),
        ("freeze=head optimizer=sgd", "with freeze=head", LAYERS),
        ("freeze=head optimizer.l1=0.1", "with freeze=head", LAYERS),
        ("freeze=head schedule=step", "with freeze=head", LAYERS),
        ("freeze=head augment=strong", "with freeze=head", f"{LAYERS}, or probe.views=2"),
        ("freeze=head augment.rotate=9", "with freeze=head", f"{LAYERS}, or probe.views=2"),
        ("freeze=head probe.views=1 augment.mixup=0.2", "with freeze=head", LAYERS),
        ("freeze=head head.dropout=0.2", "with freeze=head", f"{LAYERS}, or head.hidden=[256]"),
        ("freeze=head recipe=fastai", "with freeze=head", "the freeze= that it sets itself"),
        ("freeze=full probe.views=1", "with freeze=full", "freeze=head, lp_ft or auto"),
        ("head.hidden=[8] probe.l2=[0.1]", "with head.hidden=[8]", "head.hidden=[]"),
        ("data.image_size=64 probe.size_factors=[1]", "with data.image_size=64", "data.image_size=auto"),
        ("schedule=cosine schedule.milestones=[0.5]", "with schedule=cosine", "schedule=step"),
        ("freeze=full trainer.search_steps=30", "with optimizer.learning_rate=0.0003", "optimizer.learning_rate=auto"),
        ("imbalance.focal_gamma=1", "with imbalance=auto", "imbalance=focal"),
        ("freeze=full augment=none augment.erase_area=[0.1,0.2]", "with augment.erase=0", "augment=erase"),
    ],
)
def test_what_was_typed_and_can_do_nothing_is_refused(
    words: str, way: str, use: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = words.split()[-1].partition("=")[0]
    assert refused(capsys, *words.split()) == [
        f"{key} does nothing {way}: it is for {use}; choose that, or leave {key} out"
    ]


def test_all_that_can_do_nothing_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "freeze=head", "trainer.soup=2", "trainer.patience=null", "optimizer=sgd")
    assert [line.split()[0] for line in said] == ["trainer.soup", "trainer.patience", "optimizer"]


@pytest.mark.parametrize(
    "words",
    [
        "freeze=head probe.views=1 augment=strong",
        "freeze=head head.hidden=[8] head.dropout=0.2 head.activation=gelu",
        "freeze=lp_ft optimizer=sgd probe.views=1 freeze.head_epochs=1 head.dropout=0.1",
        "freeze=partial freeze.groups=[0,1] data.cache=ram",
        "freeze=head data.num_workers=4 data.cache=ram trainer.devices=2 trainer.compile=true",
        "freeze=gradual freeze.epochs_per_group=1 freeze.statistics=keep",
        "freeze.top_groups=2 freeze.head_below=9 trainer.clip_norm=1 probe.sample=50",
        "optimizer.learning_rate=auto trainer.search_steps=30 freeze=full",
        # what they set and do not use was not typed
        "recipe=scratch freeze=head",
        "recipe=fastai schedule=none",
        "recipe=lp_ft",
    ],
)
def test_what_acts_or_was_not_typed_is_taken(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words.split()) == [f"data.root={Path('nowhere').absolute()}: no such folder"]


@pytest.mark.parametrize("option", sorted(path.stem for path in (conf_dir() / "freeze").glob("*.yaml")))
def test_what_an_option_of_freeze_sets_beside_its_mode_is_not_left_out(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, f"freeze.mode={option}") == [
        f"freeze.mode={option} leaves out what else belongs to freeze={option}; use freeze={option}"
    ]


def test_what_auto_turns_out_not_to_use_is_a_warning(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY[:3]]
    done = run_finetune(*words, "trainer.soup=2", "probe.sample=50")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "does nothing" in line] == [
        "freeze=auto came to freeze=head: trainer.soup does nothing with freeze=head: it is for "
        f"{LAYERS}; choose that, or leave trainer.soup out"
    ]


def test_what_only_makes_layers_train_faster_is_a_warning(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY[:3], "data.num_workers=1"]
    done = run_finetune(*words, "freeze=head")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "does nothing" in line] == [
        f"data.num_workers does nothing with freeze=head: it is for {LAYERS}; choose that, or leave data.num_workers "
        "out"
    ]


def test_a_key_may_be_for_some_runs_of_a_sweep_only(photos: Path, tmp_path: Path) -> None:
    words = [f"data.root={photos}", f"output={tmp_path / 'sweep'}", *TINY[:3], "freeze=head,full"]
    done = run_finetune("train", "--multirun", *words, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trainer.max_epochs does nothing with freeze=head") == 1


def test_every_rule_is_about_keys_that_there_are() -> None:
    known = describe(TrainConfig)
    for key in (key for rule in RULES for key in rule.keys):
        assert any(name == key or name.startswith(f"{key}.") for name in known), key


def test_a_depth_that_photos_decided_leaves_what_it_uses() -> None:
    config, typed = train_config(), ("freeze.top_groups", "freeze.full_from", "trainer.soup", "probe.l2")
    assert [line.split()[0] for line in idle_keys(config, typed, "head")] == ["freeze.top_groups", "trainer.soup"]
    assert [*idle_keys(config, typed, "partial")] == []
    assert [line.split()[0] for line in idle_keys(config, typed, "full")] == ["freeze.top_groups"]

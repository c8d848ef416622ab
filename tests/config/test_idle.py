"""What a person types acts, or is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import run
from finetune.config import TrainConfig
from finetune.config.idle import RULES, idle_keys
from finetune.manual import conf_dir
from finetune.schema import describe
from tests.conftest import TINY, run_finetune, train_config

# What acts in every way of training.
ALWAYS = {
    *("data.root", "data.class_from", "data.group_pattern", "data.val_fraction", "data.test_fraction", "data.folds"),
    *("data.fold", "data.splits_from", "data.near_duplicates", "data.alpha_over", "data.on_problem", "data.image_size"),
    *("data.fit", "model.backbone", "model.weights", "model.features", "model.drop_stages", "head.hidden"),
    *("head.batch_norm", "freeze.mode", "imbalance.method", "trainer.accelerator", "logger.tensorboard"),
    *("logger.mlflow", "logger.wandb", "budget_minutes", "seed", "output"),
}
LAYERS = "freeze=partial, full, gradual or lp_ft"


def idle(*words: str) -> list[str]:
    """Return what is said of the keys of a command line that can do nothing."""
    return [*idle_keys(train_config(*words), [word.partition("=")[0] for word in words])]


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
        ("freeze=head trainer.devices=2", "with freeze=head", LAYERS),
        ("freeze=head data.cache=ram", "with freeze=head", LAYERS),
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
def test_what_was_typed_and_can_do_nothing_is_told_of(words: str, way: str, use: str) -> None:
    key = words.split()[-1].partition("=")[0]
    assert idle(*words.split()) == [f"{key} does nothing {way}: it is for {use}; choose that, or leave {key} out"]


def test_all_that_can_do_nothing_is_told_of() -> None:
    said = idle("freeze=head", "trainer.soup=2", "trainer.patience=null", "optimizer=sgd")
    assert [line.split()[0] for line in said] == ["trainer.soup", "trainer.patience", "optimizer"]


@pytest.mark.parametrize(
    "words",
    [
        "freeze=head probe.views=1 augment=strong",
        "freeze=head head.hidden=[8] head.dropout=0.2 head.activation=gelu",
        "freeze=lp_ft optimizer=sgd probe.views=1 freeze.head_epochs=1 head.dropout=0.1",
        "freeze=partial freeze.groups=[0,1] data.cache=ram",
        "freeze=gradual freeze.epochs_per_group=1 freeze.statistics=keep",
        "freeze.top_groups=2 freeze.head_below=9 trainer.clip_norm=1 probe.sample=50",
        "optimizer.learning_rate=auto trainer.search_steps=30 freeze=full",
        # what they set and do not use was not typed
        "recipe=scratch freeze=head",
        "recipe=fastai schedule=none",
        "recipe=lp_ft",
    ],
)
def test_of_what_acts_or_was_not_typed_nothing_is_said(words: str) -> None:
    assert idle(*words.split()) == []


@pytest.mark.parametrize("option", sorted(path.stem for path in (conf_dir() / "freeze").glob("*.yaml")))
def test_what_an_option_of_freeze_sets_beside_its_mode_is_not_left_out(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "data.root=nowhere", "output=run", f"freeze.mode={option}"]) == 2
    said = f"freeze.mode={option} leaves out what else belongs to freeze={option}; use freeze={option}"
    assert capsys.readouterr().err == f"finetune train: {said}\n"


def test_what_auto_turns_out_not_to_use_is_told_of(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY[:3]]
    done = run_finetune(*words, "trainer.soup=2", "probe.sample=50")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "does nothing" in line] == [
        "freeze=auto came to freeze=head: trainer.soup does nothing with freeze=head: it is for "
        f"{LAYERS}; choose that, or leave trainer.soup out"
    ]


def test_what_does_nothing_stands_in_no_way(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY[:3], "optimizer=sgd", "freeze=head"]
    for outcome in ("report:", "already finished"):
        done = run_finetune(*words)
        assert done.returncode == 0, done.stderr
        assert outcome in done.stdout
        if outcome == "report:":
            assert f"optimizer does nothing with freeze=head: it is for {LAYERS}" in done.stderr


def test_a_key_may_be_for_some_runs_of_a_sweep_only(photos: Path, tmp_path: Path) -> None:
    words = [f"data.root={photos}", f"output={tmp_path / 'sweep'}", *TINY[:3], "freeze=head,full"]
    done = run_finetune("train", "--multirun", *words, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trainer.max_epochs does nothing with freeze=head") == 1


def test_every_key_acts_always_or_has_a_rule() -> None:
    known = describe(TrainConfig)
    for key in (key for rule in RULES for key in rule.keys):
        assert any(name == key or name.startswith(f"{key}.") for name in known), key
    assert {key for key in known if not any(rule.covers(key) for rule in RULES)} == ALWAYS


def test_a_depth_that_photos_decided_leaves_what_it_uses() -> None:
    config, typed = train_config(), ("freeze.top_groups", "freeze.full_from", "trainer.soup", "probe.l2")
    assert [line.split()[0] for line in idle_keys(config, typed, "head")] == ["freeze.top_groups", "trainer.soup"]
    assert [*idle_keys(config, typed, "partial")] == []
    assert [line.split()[0] for line in idle_keys(config, typed, "full")] == ["freeze.top_groups"]

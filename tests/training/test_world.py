from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.cli import run
from finetune.training.world import Started, World, describe_world
from tests.conftest import TINY, paint_folder

CPU = torch.device("cpu")


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """What `finetune train` says to keys that it must refuse before it does anything."""

    def refused(*words: str) -> str:
        photos = paint_folder(tmp_path / "photos", per_class=4)
        assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, *words]) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.strip()

    return refused


def composed(*words: str):  # type: ignore[no-untyped-def]
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.config import TrainConfig
    from finetune.manual import conf_dir

    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        values = OmegaConf.to_container(compose("train", ["data.root=photos", "output=run", *words]), resolve=True)
    return TrainConfig.model_validate(values)


def test_impossible_worlds_are_refused(said) -> None:  # type: ignore[no-untyped-def]
    assert "trainer.devices=0 is wrong" in said("trainer.devices=0")
    assert "each needs 2 photos; give 10 or more, or fewer processes" in said("trainer.devices=5", "data.batch_size=9")
    assert "`torchrun --nnodes=2 --nproc-per-node=3 " in said("trainer.devices=3", "trainer.num_nodes=2")
    divided = ("trainer.devices=2", "trainer.strategy=fsdp", "freeze=gradual")
    assert "cannot shard what begins to train later; use ddp" in said(*divided)
    mixed = ("trainer.devices=2", "trainer.strategy=fsdp", "trainer.precision=16-mixed")
    assert "use bf16-mixed" in said(*mixed)
    kept = ("trainer.devices=2", "data.cache=ram", "freeze=full")
    assert "data.cache=ram would be kept by each of the 2 processes" in said(*kept)


def test_a_machine_without_a_gpu_is_one_process() -> None:
    assert describe_world(composed(), CPU) == World()
    assert describe_world(composed("trainer.devices=3"), CPU) == World(local_size=3)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert describe_world(composed(), cuda).size == 2
    with pytest.raises(Exception, match="4 processes need a GPU each, and this machine has 2"):
        describe_world(composed("trainer.devices=4"), cuda)


def test_the_world_is_the_one_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "6", "LOCAL_RANK": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    world = describe_world(composed(), CPU)
    assert (world.rank, world.local_rank, world.size, world.nodes, world.launched) == (6, 2, 8, 2, True)
    assert (Started(world).node_rank(), Started(world).local_rank()) == (1, 2)
    assert describe_world(composed("trainer.devices=4", "trainer.num_nodes=2"), CPU) == world
    with pytest.raises(Exception, match=r"trainer\.devices=8, but the launcher started 4; leave trainer\.devices=auto"):
        describe_world(composed("trainer.devices=8"), CPU)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert describe_world(composed("trainer.devices=2"), CPU) == World(local_size=2)


def test_the_world_is_the_one_that_srun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # a batch script of a job of 16 tasks, without srun
    job = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert describe_world(composed(), CPU) == World()
    step = {"NUM_TASKS": "16", "NUM_NODES": "2", "NODELIST": "gpu[07-08]"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    monkeypatch.setenv("SLURM_PROCID", "11")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    world = describe_world(composed(), CPU)
    assert (world.rank, world.local_rank, world.local_size, world.nodes) == (11, 3, 8, 2)
    assert world.rendezvous == {"RANK": "11", "WORLD_SIZE": "16", "MASTER_ADDR": "gpu07", "MASTER_PORT": "18456"}

"""How many processes train together, and which of them this is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from finetune.config import TrainConfig
from finetune.errors import FinetuneError

# Rows of a batch are dealt out in pairs, as mixup blends them.
LEAST_PHOTOS = 2


@dataclass(frozen=True)
class World:
    """rank: this process among all of them; local_rank: among the `local_size` of its machine, one of `nodes`.

    launched: all were started by a launcher, to whom `rendezvous`, environment variables, says where they meet.
    """

    rank: int = 0
    local_rank: int = 0
    local_size: int = 1
    nodes: int = 1
    launched: bool = False
    rendezvous: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.local_size * self.nodes

    @property
    def least_batch(self) -> int:
        """How many photos all processes together take in one step at least."""
        return LEAST_PHOTOS * self.size

    def beside(self, local_rank: int) -> World:
        """Return another process of the same machine."""
        return replace(self, rank=self.rank - self.local_rank + local_rank, local_rank=local_rank)


class Started(LightningEnvironment):
    """Tells Lightning which process this is; all of them run already and have met."""

    creates_processes_externally = True

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size

    def teardown(self) -> None:
        """Leave the environment variables of whoever started us."""


def describe_world(config: TrainConfig, device: torch.device) -> World:
    """Return the processes that the launcher started, or those that are to be; raises FinetuneError where they differ.

    device: the kind of device each of them gets one of.
    """
    launched = _by_torchrun() or _by_srun()
    world = launched or World(local_size=_devices_here(config, device))
    _compare(config, world, device)
    if config.data.batch_size != "auto" and config.data.batch_size < world.least_batch:
        raise FinetuneError(
            f"data.batch_size={config.data.batch_size} is what all {world.size} processes take in one step, and each "
            f"needs {LEAST_PHOTOS} photos; give {world.least_batch} or more, or fewer processes"
        )
    return world


def _devices_here(config: TrainConfig, device: torch.device) -> int:
    if config.trainer.devices == "auto":
        return torch.cuda.device_count() if device.type == "cuda" else 1
    return config.trainer.devices


def _compare(config: TrainConfig, world: World, device: torch.device) -> None:
    """Refuse other numbers than the launcher's, more devices than there are, and what a strategy cannot do."""
    told = {"devices": (config.trainer.devices, world.local_size), "num_nodes": (config.trainer.num_nodes, world.nodes)}
    for key, (wanted, started) in told.items():
        if wanted in ("auto", started):
            continue
        if not world.launched:
            raise FinetuneError(
                f"trainer.{key}={wanted} takes a process on each node: start them with a launcher, such as "
                f"`torchrun --nnodes={wanted} --nproc-per-node={world.local_size} ... -m finetune train ...`"
            )
        raise FinetuneError(f"trainer.{key}={wanted}, but the launcher started {started}; leave trainer.{key}=auto")
    there = torch.cuda.device_count()
    if device.type == "cuda" and world.local_size > there:
        raise FinetuneError(f"{world.local_size} processes need a GPU each, and this machine has {there}")
    if world.size > 1 and config.data.cache == "ram":
        raise FinetuneError(
            f"data.cache=ram would be kept by each of the {world.size} processes; use disk, which they share, or none"
        )
    if config.trainer.strategy == "fsdp" and world.size > 1:
        for key in ("ema_decay", "compile"):
            if getattr(config.trainer, key):
                raise FinetuneError(f"trainer.{key} does not go with trainer.strategy=fsdp; use ddp, or leave it out")
        if config.freeze.mode == "gradual":
            raise FinetuneError("trainer.strategy=fsdp cannot shard what begins to train later; use ddp for gradual")
        if config.trainer.precision == "16-mixed":
            raise FinetuneError("trainer.strategy=fsdp does not go with trainer.precision=16-mixed; use bf16-mixed")


def _by_torchrun() -> World | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return World(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), local_size, size // local_size, launched=True)


def _by_srun() -> World | None:
    # of the step and not of the job: a batch script that calls us without srun is one process, whatever it reserved
    size = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1:
        return None
    nodes, rank = int(os.environ["SLURM_STEP_NUM_NODES"]), int(os.environ["SLURM_PROCID"])
    rendezvous = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR")
        or SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"]),
        # the same in every process of a job, and another for another job
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000),
    }
    return World(rank, int(os.environ["SLURM_LOCALID"]), size // nodes, nodes, launched=True, rendezvous=rendezvous)

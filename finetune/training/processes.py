"""The processes that train together: who they are, what they do side by side, and what becomes of them.

Rank 0 is the command itself: it owns the run folder, decides, measures and speaks. The others take part in what it
gives them to do. Either it starts them (`trainer.devices=2`), or a launcher (torchrun, srun) started them all.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from finetune.data.sampling import Share
from finetune.errors import Interrupted
from finetune.training.beside import Children, Failure, failure_of
from finetune.training.world import World

log = logging.getLogger(__name__)
Outcome = TypeVar("Outcome")

# Preparing photos may take as long as it likes; whoever waits ends with the process it waits for.
FOREVER = timedelta(days=365)
# A launcher starts all at about the same time.
TO_MEET = timedelta(minutes=10)
# what rank 0 says of its next job
WORK, OVER = "work", "over"

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class Processes:
    """The processes of one training, as one of them sees them; a context within which rank 0 may give work to all."""

    def __init__(self, world: World, device: torch.device, store: Store | None = None) -> None:
        """store: where they leave each other word; None: it is made when there is something to say."""
        self.world = world
        self.device = torch.device("cuda", world.local_rank) if device.type == "cuda" else device
        self._store = store
        self._jobs = 0

    def __enter__(self) -> Processes:
        if self.world.launched:
            # the others wait to be let in
            self._meeting_point()
        return self

    def __exit__(self, *_: object) -> None:
        """Let those go that a launcher started."""
        if self.world.launched:
            self._meeting_point().set(f"job/{self._jobs}", OVER)

    @property
    def share(self) -> Share:
        return Share(self.world.rank, self.world.size)

    def run(self, work: Callable[..., Outcome], *arguments: Any, **own: Any) -> Outcome:
        """Call `work(processes, *arguments)` in every process at once and return what it returns in rank 0.

        work and arguments are pickled; own: what it is called with in rank 0 only. What fails in any is raised here.
        """
        if self.world.size == 1:
            return work(self, *arguments, **own)
        log.info("%d processes take equal shares of each batch", self.world.size)
        number, self._jobs = self._jobs, self._jobs + 1
        store = self._meeting_point()
        if self.world.launched:
            store.set(f"job/{number}", WORK)
            return cast(Outcome, self._work(number, (work, arguments), **own))
        assert isinstance(store, TCPStore)
        with Children(self.world, (_take_part, self.device, store.port, number)) as children:
            try:
                return cast(Outcome, self._work(number, (work, arguments), **own))
            except Exception as error:
                raise children.cause_of(error) from error

    def serve(self) -> str:
        """Do what rank 0 gives to do until it has no more; for those that a launcher started beside it."""
        _follow_rank_0(self.world.rank)
        store = self._meeting_point()
        for number in count():
            store.wait([f"job/{number}"], FOREVER)
            if store.get(f"job/{number}") == OVER.encode():
                break
            try:
                self._work(number)
            except Interrupted:
                break
        return ""

    def gather(self, own: Tensor) -> Tensor:
        """Return the tensors of all processes, each (N, ...) in the same shape, as (processes, N, ...) on the CPU."""
        if self.world.size == 1:
            return own.cpu()[None]
        sent = own.to(self.device).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.world.size)]
        distributed.all_gather(parts, sent)
        return torch.stack(parts).cpu()

    def _meeting_point(self) -> Store:
        if self._store is None:
            if self.world.launched:
                os.environ |= self.world.rendezvous
                self._store, _, _ = next(rendezvous("env://", timeout=TO_MEET))
            else:
                self._store = TCPStore("127.0.0.1", 0, is_master=True)
        return self._store

    def _work(self, number: int, job: Job | None = None, **own: Any) -> Any:
        """Join the group of all processes, do what rank 0 has, and leave it together."""
        on_gpu = self.device.type == "cuda"
        threads = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, threads // self.world.local_size))
        if on_gpu:
            torch.cuda.set_device(self.device)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=PrefixStore(f"group/{number}", self._meeting_point()),
            rank=self.world.rank,
            world_size=self.world.size,
            device_id=self.device if on_gpu else None,
        )
        try:
            told = [job]
            distributed.broadcast_object_list(told, src=0)
            assert told[0] is not None
            # what rank 0 has is changed in place, so it keeps its own
            work, arguments = job or told[0]
            outcome = work(self, *arguments, **own)
            distributed.barrier()
            return outcome
        finally:
            distributed.destroy_process_group()
            torch.set_num_threads(threads)


def _take_part(world: World, device: torch.device, port: int, number: int) -> Failure | None:
    """Do one job beside rank 0, in a process that it started."""
    _follow_rank_0(world.rank)
    pl.seed_everything(int(os.environ["PL_GLOBAL_SEED"]), workers=True, verbose=False)
    store = TCPStore("127.0.0.1", port, is_master=False)
    try:
        Processes(world, device, store)._work(number)
    except Interrupted:
        return None
    except Exception as error:
        return failure_of(error)
    return None


def _follow_rank_0(rank: int) -> None:
    """Say nothing that rank 0 says too, and leave it to rank 0 when to stop."""
    logging.getLogger("finetune").setLevel(logging.WARNING)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

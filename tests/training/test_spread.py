from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune.data.sampling import Share
from finetune.training.imbalance import Judgement
from finetune.training.processes import Processes
from finetune.training.spread import AgreedClock, judge_all

PHOTOS = 5


class Stands:
    """A clock that shows the number of its process."""

    def __init__(self, rank: int) -> None:
        self.share = 0.25 + rank


def seen_by_judge(logits: Tensor, targets: Tensor) -> Judgement:
    """Put what arrives into a judgement, digit by digit."""
    first = "".join(str(int(value)) for value in logits[:, 0])
    return Judgement(float(first), 0.0, float("".join(str(int(value)) for value in targets)), (0.0, 0.0))


def look_beyond_own_share(processes: Processes) -> list[list[float]]:
    own = Share(processes.world.rank, 2).all_of(PHOTOS)
    logits = torch.tensor([[photo + 1.0, 0.0] for photo in own])
    judged = judge_all(seen_by_judge, processes, PHOTOS)(logits, torch.tensor(own) + 3)
    clock = AgreedClock(Stands(processes.world.rank), processes)
    clock.on_train_batch_start()
    found = torch.tensor([judged.accuracy, judged.loss, clock.share], dtype=torch.float64)
    return processes.gather(found).tolist()


def test_all_judge_every_photo_in_order_and_go_by_one_clock(in_two_processes: list[Any]) -> None:
    first, second = in_two_processes[1]
    assert first == [12345.0, 34567.0, 0.25]
    assert second == first

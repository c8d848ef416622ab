"""What is tested in two processes, which take seconds to start, is done in the same two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.training.processes import Processes
from finetune.training.world import World


def all_parts(processes: Processes) -> list[Any]:
    from tests.training.test_batch_norm import norm_own_share
    from tests.training.test_spread import look_beyond_own_share

    return [norm_own_share(processes), look_beyond_own_share(processes)]


@pytest.fixture(scope="package")
def in_two_processes() -> list[Any]:
    """What each part came to in rank 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return Processes(World(local_size=2), torch.device("cpu")).run(all_parts)

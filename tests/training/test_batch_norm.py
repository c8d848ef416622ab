from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from finetune.training.batch_norm import SyncBatchNorm, synchronise
from finetune.training.processes import Processes

STEPS = 3


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), BatchNormAct2d(5)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192, momentum=None, affine=False), nn.Linear(192, 3)),
    ]


def photos() -> Tensor:
    # uneven means, so that statistics of a part are not those of the whole
    noise = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return noise + torch.arange(7).view(-1, 1, 1, 1)


def trained(network: nn.Module, own: Tensor, size: int) -> dict[str, Tensor]:
    """Take steps on the mean over all photos of the squared output; return gradients and buffers."""
    network.double().train()
    for _ in range(STEPS):
        # the mean over processes of this is the mean over photos
        (network(own).square().flatten(1).mean(1).sum() * size / 7).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return gradients | dict(network.named_buffers())


def norm_own_share(processes: Processes) -> list[dict[str, Tensor]]:
    own = photos()[[0, 1, 6, 4]] if processes.world.rank == 0 else photos()[[2, 5, 3]]
    answers = []
    for network in networks():
        synchronise(network, torch.device("cpu"))
        assert any(isinstance(module, SyncBatchNorm) for module in network.modules())
        found = trained(network, own, 2)
        for name, parameter in network.named_parameters():
            found[name] = processes.gather(found[name]).mean(0)
            assert parameter.requires_grad
        answers.append(found)
    return answers


def test_two_processes_norm_as_one_that_has_all_photos(in_two_processes: list[Any]) -> None:
    for network, found in zip(networks(), in_two_processes[0], strict=True):
        wanted = trained(network, photos(), 1)
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)

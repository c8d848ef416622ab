"""A linear classifier on kept features: multinomial logistic regression with an L2 penalty, fitted by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# A feature that varies less, or less than this share of what others do, is taken for constant.
LEAST_DEVIATION, LEAST_SHARE = 1e-5, 1e-3
MOST_STEPS = 300
# Rough ones take a third of the time and answers the same photos right.
EXACTLY, ROUGHLY = 1e-5, 1e-3
# Standard deviation of the prior of log temperature.
TEMPERATURE_SPREAD = 0.5
# Of a matrix of features from which on several threads are worth while.
LARGE = 2**24


@dataclass(frozen=True)
class LinearFit:
    """Logits are `(features - mean) / scale @ weight.T + bias`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: NDArray[np.float32]) -> Tensor:
        """features: (N, F); returns (N, classes)."""
        return (torch.from_numpy(features) - self.mean) / self.scale @ self.weight.T + self.bias


def fit_linear(
    features: NDArray[np.float32],
    targets: Sequence[int],
    classes: int,
    penalties: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
    tolerance: float = EXACTLY,
) -> list[LinearFit]:
    """Fit one classifier for each weight of the L2 penalty, in the order given.

    Minimises loss + l2 / 2 * |weight|^2 on features standardised over the photos, each counted once whatever the loss.
    The strongest penalty is fitted first, each of the others from the one before it. A class absent from `targets`
    gets a low, finite score.
    loss: from logits (N, classes) and class numbers (N,); the mean over photos. tolerance: the steepest slope that is
    left.
    """
    with threads_for(features.size):
        raw = torch.from_numpy(features)
        mean = raw.mean(0)
        scale = deviations(raw)
        standardised, basis = _turned((raw - mean) / scale)
        wanted = torch.tensor(targets)
        weight = torch.zeros(classes, standardised.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        fits: dict[float, LinearFit] = {}
        for l2 in sorted(set(penalties), reverse=True):
            _minimise(lambda: loss(standardised @ weight.T + bias, wanted), weight, bias, l2, tolerance)
            turned_back = weight.detach().clone() if basis is None else weight.detach() @ basis.T
            fits[l2] = LinearFit(mean, scale, turned_back, bias.detach().clone())
        return [fits[l2] for l2 in penalties]


def cross_validate(
    features: NDArray[np.float32],
    targets: Sequence[int],
    folds: Sequence[int],
    classes: int,
    penalties: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Return, for each penalty, what photos are answered by a classifier that was fitted to those of other folds.

    Logits (M, classes) of the M photos with a fold of 0 or more, in their order; all others are in every fit. To
    compare, the fits need not be exact.
    """
    fold, wanted = np.array(folds), np.array(targets)
    answers = [torch.zeros(len(fold), classes) for _ in penalties]
    for number in np.unique(fold[fold >= 0]):
        learned, held_out = fold != number, fold == number
        fits = fit_linear(features[learned], wanted[learned].tolist(), classes, penalties, loss, ROUGHLY)
        for answer, fit in zip(answers, fits, strict=True):
            answer[torch.from_numpy(held_out)] = fit.logits(features[held_out])
    return [answer[torch.from_numpy(fold >= 0)] for answer in answers]


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Let torch work on a matrix of so many numbers with one thread, or with all where it is large.

    Threads wait for each other at every one of thousands of small steps: they take twice as long as one on idle cores,
    and tens of times as long where other work has one of the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if numbers > LARGE else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def deviations(features: Tensor) -> Tensor:
    """Return what each of the features (N, F) is to be divided by: its deviation, or a typical one where it has none.

    What is constant in a frozen network says nothing to a head, but it moves once layers train: divided by next to
    nothing, it would then drown everything else.
    """
    deviation = features.std(0, correction=0)
    varying = deviation[deviation > LEAST_DEVIATION]
    typical = varying.median() if len(varying) else torch.ones(())
    return torch.where(deviation > torch.clamp(LEAST_SHARE * typical, min=LEAST_DEVIATION), deviation, typical)


def fit_temperature(logits: Tensor, targets: Sequence[int]) -> float:
    """Return the temperature, 0.1 to 10, that fits validation photos best (Guo et al. 2017).

    Its logarithm has a normal prior around 0: a few photos, all of them right, are no reason to be sure of everything.
    """
    wanted = torch.tensor(targets)
    candidates = torch.logspace(-1, 1, 201)
    losses = [functional.cross_entropy(logits / temperature, wanted, reduction="sum") for temperature in candidates]
    prior = (candidates.log() / TEMPERATURE_SPREAD) ** 2 / 2
    return float(candidates[(torch.stack(losses) + prior).argmin()])


def _turned(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the features in the space that the photos span, and its basis (F, N), where that is much smaller.

    The best weights lie in it, and the penalty is the same in any orthonormal basis.
    """
    photos, width = features.shape
    if width < 2 * photos:
        return features, None
    basis, triangle = torch.linalg.qr(features.T)
    return triangle.T.contiguous(), basis


def _minimise(loss: Callable[[], Tensor], weight: Tensor, bias: Tensor, l2: float, tolerance: float) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_STEPS, history_size=10, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
    )

    def evaluate() -> float:
        optimizer.zero_grad()
        value = loss() + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]

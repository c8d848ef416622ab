from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from finetune.training.loss import ClassificationLoss, class_weights

CLASSES = 4


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (20, 4) in double precision and class numbers."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(20, CLASSES, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(CLASSES, (20,), generator=generator)


def value_and_slope(loss: ClassificationLoss, seed: int, soft: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits, targets = case(seed)
    value = loss(logits, functional.one_hot(targets, CLASSES).double() if soft else targets)
    (slope,) = torch.autograd.grad(value, logits)
    return value, slope


seeds, gammas = st.integers(0, 10_000), st.floats(0.1, 5)
weights = st.lists(st.floats(0, 20), min_size=CLASSES, max_size=CLASSES).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(seed=seeds)
def test_without_weights_and_gamma_it_is_cross_entropy(seed: int) -> None:
    logits, targets = case(seed)
    torch.testing.assert_close(ClassificationLoss()(logits, targets), functional.cross_entropy(logits, targets))


@given(seed=seeds, weights=weights)
def test_focal_tends_to_cross_entropy_as_gamma_tends_to_0(seed: int, weights: torch.Tensor) -> None:
    # so small a gamma goes through the focal formula, and 0 through torch's cross-entropy
    focal, plain = (value_and_slope(ClassificationLoss(weights, gamma), seed, soft=False) for gamma in (1e-9, 0.0))
    torch.testing.assert_close(focal, plain, atol=1e-6, rtol=1e-6)


@given(seed=seeds, weights=weights, gamma=st.just(0.0) | gammas)
def test_one_hot_shares_are_the_class_numbers(seed: int, weights: torch.Tensor, gamma: float) -> None:
    loss = ClassificationLoss(weights, gamma)
    torch.testing.assert_close(value_and_slope(loss, seed, soft=True), value_and_slope(loss, seed, soft=False))


@given(seed=seeds, gamma=st.just(0.0) | gammas, share=st.floats(0, 1), weights=weights)
def test_a_mixture_of_two_targets_has_the_mixture_of_their_losses(
    seed: int, gamma: float, share: float, weights: torch.Tensor
) -> None:
    loss = ClassificationLoss(weights, gamma)
    logits, first = case(seed)
    second = first.roll(1)
    mixed = share * functional.one_hot(first, CLASSES) + (1 - share) * functional.one_hot(second, CLASSES)
    torch.testing.assert_close(
        loss(logits, mixed.double()), share * loss(logits, first) + (1 - share) * loss(logits, second)
    )


def test_focal_is_as_published() -> None:
    # p = 0.8 and 0.25 for the true class; (1 - p)^2 * -log p by hand
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.25, 0.5, 0.25]]).log()
    by_hand = (0.2**2 * 0.2231436 + 0.75**2 * 1.3862944) / 2
    assert ClassificationLoss(gamma=2.0)(logits, torch.tensor([0, 0])).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_that_could_not_be_surer_have_finite_slopes(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[500.0, 0, 0], [0, 500.0, 0]], dtype=dtype, requires_grad=True)
    loss = ClassificationLoss(gamma=gamma)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@given(targets=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_weights_make_every_class_present_count_the_same_and_the_mean_photo_1(targets: list[int]) -> None:
    weights = class_weights(torch.tensor(targets), CLASSES)
    totals = {label: targets.count(label) * weights[label].item() for label in set(targets)}
    assert list(totals.values()) == pytest.approx([len(targets) / len(totals)] * len(totals), rel=1e-5)
    assert all(weights[label] == 0 for label in range(CLASSES) if label not in totals)


def test_a_checkpoint_holds_nothing_of_the_loss() -> None:
    assert ClassificationLoss(torch.ones(3), gamma=2.0).state_dict() == {}


@given(seed=seeds, smoothing=st.floats(0.01, 0.9))
def test_smoothing_is_torchs_where_nothing_else_is_asked_for(seed: int, smoothing: float) -> None:
    logits, targets = case(seed)
    want = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(ClassificationLoss(smoothing=smoothing)(logits, targets), want)


@given(seed=seeds, weights=weights, gamma=st.just(0.0) | gammas, smoothing=st.floats(0.01, 0.9))
def test_smoothing_spreads_a_share_of_each_target_whatever_the_loss(
    seed: int, weights: torch.Tensor, gamma: float, smoothing: float
) -> None:
    logits, targets = case(seed)
    shares = (1 - smoothing) * functional.one_hot(targets, CLASSES).double() + smoothing / CLASSES
    want = ClassificationLoss(weights, gamma)(logits, shares)
    torch.testing.assert_close(ClassificationLoss(weights, gamma, smoothing)(logits, targets), want)

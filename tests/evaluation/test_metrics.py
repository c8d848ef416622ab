from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from finetune.data.manifest import Photo
from finetune.evaluation.metrics import Scores, balanced_accuracy, mean_of, measure, wilson

CLASSES = ("a", "b", "c")


def photos(count: int) -> list[Photo]:
    return [Photo(f"{number}.jpg", "a", "test", "", "") for number in range(count)]


def random_scores(seed: int, count: int, classes: int, top_k: Sequence[int] = (1, 5)) -> tuple[Scores, np.ndarray]:
    """Return figures of random answers to photos, and the true classes."""
    generator = np.random.default_rng(seed)
    raw = generator.random((count, classes)).astype(np.float32)
    targets = generator.integers(0, classes, count)
    probabilities = raw / raw.sum(1, keepdims=True)
    return measure(probabilities, targets.tolist(), [str(k) for k in range(classes)], photos(count), top_k), targets


def test_figures_of_a_case_worked_out_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.9, 0.0, 0.1]], dtype=np.float32)
    scores = measure(probabilities, [0, 1, 1, 0], CLASSES, photos(4), top_k=[2, 3])
    assert scores.accuracy == 0.75
    # recalls 1 and 1/2; the class that no photo shows has none
    assert scores.balanced_accuracy == 0.75
    assert scores.answers.tolist() == [0, 0, 1, 0]
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    # of three classes, two may hold the right one; three always do
    assert {k: share.value for k, share in scores.top.items()} == {1: 0.75, 2: 1.0}
    a, b, c = scores.by_class
    assert (a.photos, a.answered, b.photos, b.answered, c.photos, c.answered) == (2, 3, 2, 1, 0, 0)
    assert (a.precision, a.recall) == (wilson(2, 3), wilson(2, 2))
    assert (b.precision, b.recall, b.f1) == (wilson(1, 1), wilson(1, 2), pytest.approx(2 / 3))
    assert (c.precision, c.recall, c.f1) == (None, None, None)
    assert scores.macro == pytest.approx((5 / 6, 3 / 4, (0.8 + 2 / 3) / 2))
    assert scores.log_loss == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.9]).mean(), rel=1e-6)


@given(seed=st.integers(0, 1000), count=st.integers(1, 80), classes=st.integers(2, 12))
def test_figures_are_those_of_scikit_learn(seed: int, count: int, classes: int) -> None:
    scores, targets = random_scores(seed, count, classes)
    every, shown = range(classes), sorted(set(targets))
    assert scores.confusion.tolist() == confusion_matrix(targets, scores.answers, labels=every).tolist()
    assert scores.log_loss == pytest.approx(log_loss(targets, scores.probabilities, labels=every), abs=1e-6)
    for k, share in scores.top.items():
        if classes > 2:
            wanted = top_k_accuracy_score(targets, scores.probabilities, k=k, labels=every)
            assert share.value == pytest.approx(wanted)
    each = precision_recall_fscore_support(targets, scores.answers, labels=shown, zero_division=0)
    for number, precision, recall, f1, support in zip(shown, *each, strict=True):
        row = scores.by_class[number]
        assert (row.precision or (0.0,))[0] == pytest.approx(precision)
        assert (row.recall or (0.0,))[0] == pytest.approx(recall)
        assert (row.f1, row.photos) == (pytest.approx(f1), support)
    macro = precision_recall_fscore_support(targets, scores.answers, labels=shown, average="macro", zero_division=0)
    assert scores.macro == pytest.approx(macro[:3])
    assert scores.balanced_accuracy == pytest.approx(scores.macro.recall)


def test_of_equal_probabilities_the_first_class_comes_first() -> None:
    probabilities = np.full((3, 3), 1 / 3, dtype=np.float32)
    scores = measure(probabilities, [0, 1, 2], CLASSES, photos(3), top_k=[2])
    assert {k: share.value for k, share in scores.top.items()} == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}
    assert scores.confusion[:, 0].tolist() == [1, 1, 1]


def test_more_of_the_most_probable_classes_never_hold_fewer_right_ones() -> None:
    scores, _ = random_scores(seed=3, count=200, classes=10, top_k=[9, 3, 5, 40])
    assert list(scores.top) == [1, 3, 5, 9]
    values = [share.value for share in scores.top.values()]
    assert values == sorted(values)
    assert values[0] == scores.accuracy


def test_a_certainty_that_was_wrong_costs_much_and_not_infinitely() -> None:
    scores = measure(np.array([[1, 0]], dtype=np.float32), [1], ("a", "b"), photos(1))
    assert scores.log_loss == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_probabilities() -> None:
    honest = np.tile(np.array([[0.75, 0.25, 0.0]], dtype=np.float32), (4, 1))
    boastful = np.tile(np.array([[1.0, 0.0, 0.0]], dtype=np.float32), (4, 1))
    targets = [0, 0, 0, 1]
    assert measure(honest, targets, CLASSES, photos(4)).calibration_error == pytest.approx(0, abs=1e-6)
    assert measure(boastful, targets, CLASSES, photos(4)).calibration_error == pytest.approx(0.25)


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=50))
def test_balanced_accuracy_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    answers, targets = (list(column) for column in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        # classes that are answered and not there, which it leaves out as well
        warnings.simplefilter("ignore")
        wanted = balanced_accuracy_score(targets, answers)
    assert balanced_accuracy(torch.tensor(answers), torch.tensor(targets)) == pytest.approx(wanted)


def test_the_interval_is_wilsons() -> None:
    # 81 of 263: the worked example of Newcombe 1998, table I
    share = wilson(81, 263)
    assert (share.value, round(share.low, 4), round(share.high, 4)) == (81 / 263, 0.2553, 0.3662)


@given(total=st.integers(1, 10_000), data=st.data())
def test_the_interval_holds_the_share_and_lies_within_bounds(total: int, data: st.DataObject) -> None:
    share = wilson(data.draw(st.integers(0, total)), total)
    assert 0 <= share.low <= share.value + 1e-12
    assert share.value - 1e-12 <= share.high <= 1


def test_the_mean_of_shares_is_surer_than_each_and_of_one_is_that_one() -> None:
    one = wilson(40, 50)
    assert mean_of([one]) == pytest.approx(one)
    four = mean_of([one] * 4)
    assert four.value == pytest.approx(one.value)
    # four times the photos: half the width
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)


def test_the_bounds_of_a_mean_hold_the_true_one_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    truths, totals = (0.95, 0.8, 0.5), (20, 40, 60)
    held = 0
    for _ in range(1000):
        mean = mean_of([wilson(int(generator.binomial(n, p)), n) for p, n in zip(truths, totals, strict=True)])
        held += mean.low <= 0.75 <= mean.high
    assert 930 <= held <= 970

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from finetune.data.manifest import Photo
from finetune.evaluation.metrics import balanced_accuracy, measure, wilson_interval

CLASSES = ("a", "b", "c")


def photos(count: int) -> list[Photo]:
    return [Photo(f"{number}.jpg", "a", "test", "", "") for number in range(count)]


def test_figures_of_a_case_worked_out_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.9, 0.0, 0.1]], dtype=np.float32)
    scores = measure(probabilities, [0, 1, 1, 0], CLASSES, photos(4))
    assert scores.accuracy == 0.75
    # recalls 1 and 1/2; the class that no photo shows has none
    assert scores.balanced_accuracy == 0.75
    assert scores.answers.tolist() == [0, 0, 1, 0]
    assert scores.confusion == ((2, 0, 0), (1, 1, 0), (0, 0, 0))
    a, b, c = scores.by_class
    assert (a.photos, b.photos, c.photos) == (2, 2, 0)
    assert (a.precision, a.recall) == (pytest.approx(2 / 3), 1.0)
    assert (b.precision, b.recall, b.f1) == (1.0, 0.5, pytest.approx(2 / 3))


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
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@given(total=st.integers(1, 10_000), data=st.data())
def test_the_interval_holds_the_share_and_lies_within_bounds(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1

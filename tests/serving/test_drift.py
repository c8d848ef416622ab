from __future__ import annotations

import math
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from finetune.serving.drift import HALF_LIFE_PHOTOS, LARGEST_WEIGHT, LEAST_PHOTOS, Drift, compare

Probabilities = NDArray[np.float32]


def answers(seed: int, shares: list[float], photos: int, sharpness: float = 3.0) -> Probabilities:
    """Return what a model says of photos of which so many parts are of each class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(photos, len(shares)))
    logits[np.arange(photos), rng.choice(len(shares), photos, p=shares)] += sharpness
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def even(classes: int) -> list[float]:
    return [1 / classes] * classes


def see(drift: Drift, table: Probabilities) -> None:
    drift.add(table.argmax(axis=1).tolist(), table.max(axis=1).tolist())


def alerted(drift: Drift) -> bool:
    return drift.of_classes.alert or drift.of_confidence.alert


def test_photos_like_the_reference_raise_no_alert() -> None:
    """200 streams, each looked at ten times: 4,000 verdicts."""
    wrong = 0
    for seed in range(200):
        classes, photos = [(3, 60), (10, 200), (40, 400), (10, 2000)][seed % 4]
        drift = Drift(answers(seed, even(classes), photos))
        raised = False
        for part in range(10):
            see(drift, answers(10_000 + 10 * seed + part, even(classes), 120))
            raised |= alerted(drift)
        wrong += raised
    assert wrong <= 2


def test_some_hundred_other_photos_raise_one_after_thousands_of_the_same() -> None:
    drift = Drift(answers(0, even(5), 300))
    see(drift, answers(1, even(5), 4000))
    assert not alerted(drift)
    see(drift, answers(2, [0.9, 0.025, 0.025, 0.025, 0.025], 700))
    assert drift.of_classes.alert
    assert not drift.of_confidence.alert
    see(drift, answers(3, even(5), 4 * HALF_LIFE_PHOTOS))
    assert not alerted(drift)


def test_blurred_photos_show_in_the_confidence() -> None:
    drift = Drift(answers(0, even(5), 300, sharpness=6))
    see(drift, answers(1, even(5), 2000, sharpness=6))
    see(drift, answers(2, even(5), 300, sharpness=2))
    assert drift.of_confidence.alert
    assert not drift.of_classes.alert


def test_one_class_of_a_thousand_that_floods_in_is_seen() -> None:
    drift = Drift(answers(0, even(1000), 1000, sharpness=9))
    flood = answers(1, [0.5, *[0.5 / 999] * 999], 500, sharpness=9)
    see(drift, flood)
    assert drift.of_classes.alert


def test_the_verdict_waits_for_photos_enough() -> None:
    drift = Drift(answers(0, even(3), 500))
    assert drift.of_classes == drift.of_confidence == (0.0, math.inf)
    see(drift, answers(1, [1.0, 0.0, 0.0], LEAST_PHOTOS // 2))
    assert drift.of_classes.psi > 1
    assert not alerted(drift)
    see(drift, answers(1, [1.0, 0.0, 0.0], LEAST_PHOTOS))
    assert drift.of_classes.alert


def test_chance_is_what_simulated_samples_exceed_once_in_a_thousand() -> None:
    rng = np.random.default_rng(0)
    for groups, reference, photos in ((2, 100, 100), (3, 400, 300), (10, 400, 300), (10, 2000, 1000)):
        pairs = zip(
            rng.multinomial(photos, even(groups), 4000), rng.multinomial(reference, even(groups), 4000), strict=True
        )
        shifts = [compare(now.astype(float), then.astype(float)) for now, then in pairs]
        assert 0 < sum(shift.psi > shift.chance for shift in shifts) <= 12


def test_the_index_is_the_textbook_s() -> None:
    now, then = np.array([30_000.0, 70_000.0]), np.array([50_000.0, 50_000.0])
    expected = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert compare(now, then).psi == pytest.approx(expected, rel=1e-3)
    # 10.83 is chi-squared's quantile for one degree of freedom, where Wilson and Hilferty are at their worst
    assert compare(now, then).chance == pytest.approx(10.83 * 2e-5, rel=0.04)
    assert compare(np.full(10, 1e4), np.full(10, 1e4)).chance == pytest.approx(27.88 * 2e-5, rel=0.01)


def test_the_window_fades_by_half_in_a_half_life_and_stays_the_size_it_is() -> None:
    drift = Drift(answers(0, even(2), 100))
    drift.add([0] * HALF_LIFE_PHOTOS, [0.9] * HALF_LIFE_PHOTOS)
    drift.add([1] * HALF_LIFE_PHOTOS, [0.9] * HALF_LIFE_PHOTOS)
    before = drift._classes[1] / drift._classes[0]
    assert before == pytest.approx(2, rel=1e-6)
    sizes = len(drift._classes), len(drift._confidence)
    # so many that the weights have to be scaled back
    many = int(HALF_LIFE_PHOTOS * math.log2(LARGEST_WEIGHT) * 1.1)
    drift.add([0, 1] * (many // 2), [0.9] * (many // 2 * 2))
    assert drift._weight < LARGEST_WEIGHT
    assert drift._classes[1] / drift._classes[0] == pytest.approx(1, abs=1e-2)
    assert drift.photos == pytest.approx(2 / math.log(2) * HALF_LIFE_PHOTOS, rel=1e-3)
    assert (len(drift._classes), len(drift._confidence)) == sizes


def test_a_model_that_is_always_sure_has_fewer_bins() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]] * 50, np.float32)
    drift = Drift(reference)
    see(drift, np.tile(reference, (3, 1)))
    assert not alerted(drift)
    assert drift.of_confidence == (0.0, math.inf)
    mixed = Drift(np.concatenate([reference, answers(0, even(2), 60, sharpness=1)]))
    see(mixed, answers(1, even(2), 300, sharpness=1))
    assert mixed.of_confidence.alert


@pytest.mark.parametrize(
    "reference",
    [None, np.empty((0, 3), np.float32), np.full((5, 3), np.nan, np.float32), np.ones(3, np.float32)],
)
def test_without_a_reference_there_is_nothing_to_say(reference: Probabilities | None) -> None:
    drift = Drift(reference)
    assert not drift.has_reference
    see(drift, answers(0, even(3), 500))
    assert drift.photos == 0
    assert not alerted(drift)


def test_threads_lose_no_photo() -> None:
    drift = Drift(answers(0, even(3), 100))
    part = answers(1, even(3), 50)

    def add() -> None:
        for _ in range(40):
            see(drift, part)

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = Drift(answers(0, even(3), 100))
    see(alone, np.tile(part, (160, 1)))
    assert drift._sum == pytest.approx(alone._sum)


@given(
    reference=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.floats(0, 1, width=32)
    ),
    seed=st.integers(0, 99),
)
def test_any_reference_gives_indices_that_are_numbers(reference: Probabilities, seed: int) -> None:
    drift = Drift(reference)
    classes = reference.shape[1]
    see(drift, np.random.default_rng(seed).random((150, classes), np.float32))
    for shift in (drift.of_classes, drift.of_confidence):
        assert 0 <= shift.psi < math.inf
        assert shift.chance > 0
    assert 0 < drift.photos <= 150

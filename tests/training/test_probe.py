from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from finetune.training.loss import ClassificationLoss, class_weights
from finetune.training.probe import cross_validate, fit_linear, fit_temperature

CROSS_ENTROPY = ClassificationLoss()


def blobs(photos: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, photos)
    centres = generator.normal(size=(classes, width))
    features = centres[targets] * 0.4 + generator.normal(size=(photos, width)) * generator.uniform(0.1, 9, width)
    return features.astype(np.float32), targets.tolist()


def test_the_optimum_is_that_of_an_independent_solver() -> None:
    features, targets = blobs(200, 12, 3)
    l2 = 0.05
    (fit,) = fit_linear(features, targets, 3, [l2], CROSS_ENTROPY)
    standardised = (features - features.mean(0)) / features.std(0)
    # sklearn sums the loss over photos: C = 1 / (N * l2)
    other = LogisticRegression(C=1 / (len(targets) * l2), max_iter=5000, tol=1e-9).fit(standardised, targets)
    np.testing.assert_allclose(
        torch.softmax(fit.logits(features), 1).numpy(), other.predict_proba(standardised), atol=2e-3
    )


def test_fits_come_in_the_order_asked_for_and_shrink_with_the_penalty() -> None:
    features, targets = blobs(90, 20, 3)
    norms = [float(fit.weight.norm()) for fit in fit_linear(features, targets, 3, [0.01, 1.0, 0.1], CROSS_ENTROPY)]
    assert norms[0] > norms[2] > norms[1]


def test_a_fit_does_not_depend_on_its_neighbours() -> None:
    features, targets = blobs(120, 10, 3)
    alone = fit_linear(features, targets, 3, [0.03], CROSS_ENTROPY)[0]
    among = fit_linear(features, targets, 3, [1.0, 0.3, 0.03], CROSS_ENTROPY)[2]
    torch.testing.assert_close(alone.logits(features), among.logits(features), atol=0.02, rtol=0.02)


def test_constant_features_and_absent_classes_do_no_harm() -> None:
    features, targets = blobs(60, 8, 2)
    features[:, 3] = 7.0
    (fit,) = fit_linear(features, targets, 3, [0.1], CROSS_ENTROPY)
    logits = fit.logits(features)
    assert bool(torch.isfinite(logits).all())
    assert 2 not in logits.argmax(1).tolist()


@given(rare=st.integers(2, 12), times=st.integers(2, 9), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_weighted_classes_are_fitted_as_if_the_rare_photos_were_there_several_times(
    rare: int, times: int, seed: int
) -> None:
    common, _ = blobs(rare * times, 6, 1, seed)
    few, _ = blobs(rare, 6, 1, seed + 1)
    features, targets = np.concatenate([common, few]), [0] * len(common) + [1] * len(few)
    weighted = ClassificationLoss(class_weights(torch.tensor(targets), 2))
    (fit,) = fit_linear(features, targets, 2, [0.05], weighted)
    # an independent solver on the photos, repeated; standardised as before
    rows = np.concatenate([common, *[few] * times])
    wanted = [0] * len(common) + [1] * (times * rare)
    standardised = ((rows - features.mean(0)) / features.std(0)).astype(np.float64)
    # its one logit is the difference of our two, so its penalty is half of ours
    other = LogisticRegression(C=2 / (len(wanted) * 0.05), max_iter=5000, tol=1e-9).fit(standardised, wanted)
    np.testing.assert_allclose(torch.softmax(fit.logits(rows), 1).numpy(), other.predict_proba(standardised), atol=5e-3)


def test_weights_find_more_of_a_rare_class_and_focal_no_less() -> None:
    generator = np.random.default_rng(0)
    targets = [0] * 400 + [1] * 20
    features = generator.normal(size=(420, 5)).astype(np.float32)
    features[400:, 0] += 1.5
    recall = {}
    for name, loss in {
        "none": CROSS_ENTROPY,
        "class_weights": ClassificationLoss(class_weights(torch.tensor(targets), 2)),
        "focal": ClassificationLoss(gamma=2.0),
    }.items():
        (fit,) = fit_linear(features, targets, 2, [0.01], loss)
        recall[name] = float(fit.logits(features)[400:].argmax(1).double().mean())
    assert recall["class_weights"] > recall["none"] + 0.3
    assert recall["focal"] >= recall["none"]


def test_temperature_repairs_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=generator)
    targets = torch.multinomial(torch.softmax(honest, 1), 1, generator=generator)[:, 0].tolist()
    assert abs(fit_temperature(3 * honest, targets) - 3) < 0.4
    assert abs(fit_temperature(honest, targets) - 1) < 0.15


def test_a_few_photos_that_are_all_right_do_not_make_it_sure_of_everything() -> None:
    logits = 2 * torch.eye(3)
    assert 0.5 < fit_temperature(logits, [0, 1, 2]) < 1


def test_every_photo_is_answered_by_a_fit_to_the_others() -> None:
    features, targets = blobs(60, 8, 3)
    folds = [number % 4 for number in range(60)]
    penalties = [0.03, 1.0]
    answers = cross_validate(features, targets, folds, 3, penalties, CROSS_ENTROPY)
    for fold in range(4):
        learned = np.array(folds) != fold
        known = np.array(targets)[learned].tolist()
        for answer, fit in zip(answers, fit_linear(features[learned], known, 3, penalties, CROSS_ENTROPY), strict=True):
            torch.testing.assert_close(answer[~learned], fit.logits(features[~learned]), atol=0.1, rtol=0.05)


def test_what_no_fold_holds_out_is_in_every_fit_and_a_fold_may_be_missing() -> None:
    features, targets = blobs(40, 6, 2)
    folds = [-1] * 20 + [0] * 10 + [3] * 10
    (answer,) = cross_validate(features, targets, folds, 2, [0.1], CROSS_ENTROPY)
    assert answer.shape == (20, 2)
    (fit,) = fit_linear(features[:30], targets[:30], 2, [0.1], CROSS_ENTROPY)
    torch.testing.assert_close(answer[10:], fit.logits(features[30:]), atol=0.05, rtol=0.05)


def test_a_class_that_only_one_fold_has_is_missed_and_does_no_harm() -> None:
    features, targets = blobs(30, 6, 2)
    targets[0] = 2
    (answer,) = cross_validate(features, targets, [number % 5 for number in range(30)], 3, [0.1], CROSS_ENTROPY)
    assert bool(torch.isfinite(answer).all())
    assert answer[0].argmax() != 2

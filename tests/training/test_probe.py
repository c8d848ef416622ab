from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from finetune.training.probe import fit_linear, fit_temperature


def blobs(photos: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, photos)
    centres = generator.normal(size=(classes, width))
    features = centres[targets] * 0.4 + generator.normal(size=(photos, width)) * generator.uniform(0.1, 9, width)
    return features.astype(np.float32), targets.tolist()


def test_the_optimum_is_that_of_an_independent_solver() -> None:
    features, targets = blobs(200, 12, 3)
    l2 = 0.05
    (fit,) = fit_linear(features, targets, 3, [l2])
    standardised = (features - features.mean(0)) / features.std(0)
    # sklearn sums the loss over photos: C = 1 / (N * l2)
    other = LogisticRegression(C=1 / (len(targets) * l2), max_iter=5000, tol=1e-9).fit(standardised, targets)
    np.testing.assert_allclose(
        torch.softmax(fit.logits(features), 1).numpy(), other.predict_proba(standardised), atol=2e-3
    )


def test_fits_come_in_the_order_asked_for_and_shrink_with_the_penalty() -> None:
    features, targets = blobs(90, 20, 3)
    norms = [float(fit.weight.norm()) for fit in fit_linear(features, targets, 3, [0.01, 1.0, 0.1])]
    assert norms[0] > norms[2] > norms[1]


def test_a_fit_does_not_depend_on_its_neighbours() -> None:
    features, targets = blobs(120, 10, 3)
    alone = fit_linear(features, targets, 3, [0.03])[0]
    among = fit_linear(features, targets, 3, [1.0, 0.3, 0.03])[2]
    torch.testing.assert_close(alone.logits(features), among.logits(features), atol=0.02, rtol=0.02)


def test_constant_features_and_absent_classes_do_no_harm() -> None:
    features, targets = blobs(60, 8, 2)
    features[:, 3] = 7.0
    (fit,) = fit_linear(features, targets, 3, [0.1])
    logits = fit.logits(features)
    assert bool(torch.isfinite(logits).all())
    assert 2 not in logits.argmax(1).tolist()


def test_temperature_repairs_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=generator)
    targets = torch.multinomial(torch.softmax(honest, 1), 1, generator=generator)[:, 0].tolist()
    assert abs(fit_temperature(3 * honest, targets) - 3) < 0.4
    assert abs(fit_temperature(honest, targets) - 1) < 0.15


def test_a_few_photos_that_are_all_right_do_not_make_it_sure_of_everything() -> None:
    logits = 2 * torch.eye(3)
    assert 0.5 < fit_temperature(logits, [0, 1, 2]) < 1

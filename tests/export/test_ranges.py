from __future__ import annotations

import pytest

from finetune.export.ranges import largest_activations
from tests.export.graphs import noise, steep_graph


def test_the_largest_of_all_batches_counts() -> None:
    dark, bright = noise(3) // 8, noise(3)
    found = largest_activations(steep_graph(1.0), [dark, bright])
    assert found["normalised"] == pytest.approx(float(bright.max()) - 1)
    assert found["first_relu"] == pytest.approx(largest_activations(steep_graph(1.0), [bright])["first_relu"])
    assert found["first_relu"] > 4 * largest_activations(steep_graph(1.0), [dark])["first_relu"]

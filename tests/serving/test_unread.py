from __future__ import annotations

import logging

import pytest

from finetune.serving import unread
from finetune.serving.metrics import Metrics
from finetune.serving.unread import LINE_EVERY_S, Unread


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_each_is_counted_and_some_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, metrics = Clock(), Metrics()
    monkeypatch.setattr(unread, "time", clock)
    turned_away = Unread(metrics)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            turned_away.refused(503, "too many", "10.0.0.1")
        turned_away.refused(408, "too slow", "10.0.0.2")
        clock.now += LINE_EVERY_S
        turned_away.refused(503, "too many", "10.0.0.3")
    told = [(record.getMessage(), record.fields["more"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [("refused: too many", 0), ("refused: too slow", 0), ("refused: too many", 4)]
    text = metrics.text()[0].decode()
    assert 'finetune_refusals_total{reason="503"} 6.0' in text
    assert 'finetune_refusals_total{reason="408"} 1.0' in text

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.training.fitted import Metrics
from finetune.training.tracking import Outcome, Tracker
from finetune.training.watching import Watch


class Noting(Tracker):
    """Keeps what it is told."""

    def __init__(self, begun: bool) -> None:
        super().__init__(begun)
        self.told: list[tuple[int, dict[str, float]]] = []

    def tell(self, figures: dict[str, float], step: int) -> None:
        self.told.append((step, figures))

    def show(self, name: str, picture: Path) -> None: ...

    def close(self, outcome: Outcome) -> None: ...


class Failing(Noting):
    """A server that goes away."""

    def tell(self, figures: dict[str, float], step: int) -> None:
        raise ConnectionError("the server is gone")


def rows(count: int) -> list[Metrics]:
    return [{"epoch": number, "val_loss": 1 / (number + 1)} for number in range(count)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_is_in_the_table_at_once_and_told_once(tmp_path: Path) -> None:
    noting = Noting(begun=False)
    watch = Watch(tmp_path / "metrics.csv", {"noting": noting})
    for count in (1, 2, 2, 3):
        watch.update(rows(count))
        assert [int(row["epoch"]) for row in table(tmp_path / "metrics.csv")] == list(range(count))
    assert [step for step, _ in noting.told] == [0, 1, 2]
    assert noting.told[2][1] == {"epoch": 2, "val_loss": 1 / 3}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv"}


def test_after_an_interruption_the_rest_is_told_and_a_new_logger_gets_all(tmp_path: Path) -> None:
    Watch(tmp_path / "metrics.csv", {}).update(rows(3))
    begun, new = Noting(begun=True), Noting(begun=False)
    watch = Watch(tmp_path / "metrics.csv", {"begun": begun, "new": new})
    # its last checkpoint is of the second epoch: the third is trained again, to the same figures
    for count in (3, 4):
        watch.update(rows(count))
    assert [step for step, _ in begun.told] == [3]
    assert [step for step, _ in new.told] == [0, 1, 2, 3]
    assert len(table(tmp_path / "metrics.csv")) == 4


def test_rows_of_different_columns_and_with_words(tmp_path: Path) -> None:
    noting = Noting(begun=False)
    watch = Watch(tmp_path / "metrics.csv", {"noting": noting})
    watch.update([{"features": "all", "l2": 0.1}, {"features": "last", "soup": 3}])
    assert table(tmp_path / "metrics.csv")[1] == {"features": "last", "l2": "", "soup": "3"}
    assert [figures for _, figures in noting.told] == [{"l2": 0.1}, {"soup": 3}]


def test_a_logger_that_fails_is_left_out_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noting = Noting(begun=False)
    watch = Watch(tmp_path / "metrics.csv", {"failing": Failing(begun=False), "noting": noting})
    for count in (1, 2):
        watch.update(rows(count))
    watch.close("success")
    assert [record.getMessage() for record in caplog.records] == [
        "logger=failing failed (ConnectionError: the server is gone); training goes on without it, "
        "metrics.csv has every figure"
    ]
    assert [step for step, _ in noting.told] == [0, 1]
    assert len(table(tmp_path / "metrics.csv")) == 2

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.training.feature_store import RECORD, FeatureStore, make_room

WIDTH = 5


def key(number: int) -> bytes:
    # zeros at the end too, which fixed-width bytes would lose
    return number.to_bytes(4, "big") + bytes(28)


def rows(*numbers: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([np.arange(WIDTH) + 10 * number for number in numbers], np.float32).reshape(-1, WIDTH)


def filled(folder: Path, *numbers: int) -> FeatureStore:
    store = FeatureStore(folder, WIDTH)
    with store.writing():
        store.add([key(number) for number in numbers], rows(*numbers))
    return store


def test_rows_come_back_in_the_order_asked_for_and_in_another_process_too(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2, 3)
    again = FeatureStore(tmp_path, WIDTH)
    assert again.missing([key(3), key(9), key(1)]) == [1]
    np.testing.assert_array_equal(again.gather([key(3), key(1), key(3)], slice(1, 4)), rows(3, 1, 3)[:, 1:4])


@settings(max_examples=40, deadline=None)
@given(cut_rows=st.integers(0, 3 * 4 * WIDTH), cut_index=st.integers(0, 3 * RECORD.itemsize))
def test_a_file_cut_anywhere_costs_the_rows_that_are_not_whole(
    tmp_path_factory: pytest.TempPathFactory, cut_rows: int, cut_index: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    filled(folder, 1, 2, 3)
    for name, cut in (("rows.f32", cut_rows), ("index", cut_index)):
        os.truncate(folder / name, (folder / name).stat().st_size - cut)
    store = FeatureStore(folder, WIDTH)
    keys = [key(number) for number in (1, 2, 3)]
    missing = store.missing(keys)
    with store.writing():
        store.add([keys[place] for place in missing], rows(*(place + 1 for place in missing)))
    reread = FeatureStore(folder, WIDTH)
    assert reread.missing(keys) == []
    np.testing.assert_array_equal(reread.gather(keys, slice(None)), rows(1, 2, 3))


def test_a_damaged_row_is_missing_and_its_new_one_replaces_it(tmp_path: Path) -> None:
    filled(tmp_path, 1, 2)
    with (tmp_path / "rows.f32").open("r+b") as file:
        file.seek(3)
        file.write(b"\xff")
    store = FeatureStore(tmp_path, WIDTH)
    assert store.missing([key(1), key(2)]) == [0]
    with store.writing():
        store.add([key(1)], rows(1))
    np.testing.assert_array_equal(FeatureStore(tmp_path, WIDTH).gather([key(1)], slice(None)), rows(1))


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTH)
    with pytest.raises(ValueError, match="width 5"), store.writing():
        store.add([key(1)], np.zeros((1, 4), np.float32))


WRITER = """
import sys, time
from tests.training.test_feature_store import FeatureStore, Path, key, rows, WIDTH
store = FeatureStore(Path(sys.argv[1]), WIDTH)
with store.writing():
    print("holds", flush=True)
    for number in range(100000):
        store.add([key(number)], rows(number))
"""


def test_two_processes_write_one_after_the_other_and_a_killed_one_leaves_whole_rows(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "holds\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    # waits until the other is gone
    store = FeatureStore(tmp_path, WIDTH)
    with store.writing():
        count = len(store._records)
        assert count > 0
        keys = [key(number) for number in range(count)]
        assert store.missing(keys) == []
        np.testing.assert_array_equal(store.gather(keys[-3:], slice(None)), rows(*range(count - 3, count)))


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        filled(tmp_path / name, 1, 2)
        used = time.time() - 86_400 * (4 - age)
        os.utime(tmp_path / name / "index", (used, used))
    filled(tmp_path / "new", 1)
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    make_room(tmp_path, most_bytes=3 * size)
    assert {folder.name for folder in tmp_path.iterdir()} == {"b", "c", "new"}
    # what may be in use stays, however little room there is
    make_room(tmp_path, most_bytes=0)
    assert {folder.name for folder in tmp_path.iterdir()} == {"new"}

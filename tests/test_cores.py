from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune.cores
from finetune.bundle import INPUT
from finetune.cores import CpuSession, at_work


@pytest.fixture
def model(tiny_models: Path) -> str:
    return str(tiny_models / "tiny" / "1" / "model.onnx")


def blank(session: Any) -> dict[str, Any]:
    side = session.get_inputs()[0].shape[1]
    return {INPUT: np.random.default_rng(0).integers(0, 255, (3, side, side, 3), np.uint8)}


class Held:
    """A session whose calls wait until they may go on."""

    def __init__(self, session: Any) -> None:
        self.session, self.entered, self.may_go_on = session, threading.Event(), threading.Event()

    def run(self, *given: Any) -> Any:
        self.entered.set()
        assert self.may_go_on.wait(30)
        return self.session.run(*given)


def test_a_call_alone_gets_all_cores_and_calls_beside_it_one_each(model: str) -> None:
    session = CpuSession(model, 3)
    threads = [each.get_session_options().intra_op_num_threads for each in (session._alone, session._beside)]
    assert threads == [3, 1]
    images = blank(session._alone)
    session._alone = held = Held(session._alone)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(session.run, None, images)
        assert held.entered.wait(30)
        # answered while the first still runs
        (beside,) = session.run(None, images)
        held.may_go_on.set()
        (alone,) = first.result()
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    held.entered.clear()
    session.run(None, images)
    assert held.entered.is_set()


def test_a_call_that_fails_is_over(model: str) -> None:
    session = CpuSession(model, 2)
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {INPUT: np.zeros((1, 1, 1, 1), np.uint8)})
    session._beside = None
    session.run(None, blank(session._alone))


@pytest.mark.parametrize("given", ["file", "bytes"])
def test_a_large_model_is_opened_once(model: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.cores, "MOST_MB", Path(model).stat().st_size / 1e6 - 0.001)
    session = CpuSession(model if given == "file" else Path(model).read_bytes(), 2)
    assert session._beside is session._alone


def test_one_core_is_one_session(model: str) -> None:
    session = CpuSession(model, 1)
    assert session._beside is session._alone


@pytest.mark.parametrize("threads", [1, 2])
def test_all_that_calls_may_come_to_can_be_run(model: str, threads: int) -> None:
    session = CpuSession(model, threads)
    found = session.run_each(None, blank(session._alone))
    assert len(found) == threads
    np.testing.assert_allclose(found[0][0], found[-1][0], atol=1e-6)


def _is_alone() -> bool:
    with at_work() as alone:
        return alone


def test_a_thread_that_works_claims_one_core_however_often_it_says_so() -> None:
    with at_work() as first, at_work() as again:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(_is_alone).result() is False
        assert (first, again) == (True, True)

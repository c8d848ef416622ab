from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from finetune.serving import admission
from finetune.serving.admission import Admission, client
from finetune.serving.refusal import Refusal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(admission, "time", clock)
    return clock


@contextlib.contextmanager
def asked_by(name: str) -> Iterator[None]:
    token = client.set(name)
    yield
    client.reset(token)


def test_no_more_photos_are_in_hand_than_the_queue_holds() -> None:
    queue = Admission(max_queue=10, max_wait_s=100, together=4)
    with queue.admit(6), queue.admit(2):
        assert queue.photos == 8
        with pytest.raises(Refusal, match="8 photos are waiting") as refused, queue.admit(1):
            pass
        assert refused.value.status == 503
    assert queue.photos == 0


def test_what_would_wait_for_too_long_is_refused_with_the_time_to_come_back(clock: Clock) -> None:
    queue = Admission(max_queue=1000, max_wait_s=1, together=4)
    with queue.admit(4) as leave:
        clock.now = 2.0
        queue.measure(4)
        assert queue.seconds_per_photo == 0.5
        # four of half a second each
        with pytest.raises(Refusal) as refused, queue.admit(1):
            pass
        assert refused.value.retry_after_s == 2.0
        leave()
        leave()
        with queue.admit(1):
            assert queue.photos == 3


def test_an_idle_model_takes_any_request(clock: Clock) -> None:
    queue = Admission(max_queue=4, max_wait_s=0.001, together=4)
    queue.seconds_per_photo = 10
    with queue.admit(64):
        assert queue.photos == 64
    assert queue.photos == 0


def test_the_time_of_idleness_counts_for_no_photo(clock: Clock) -> None:
    queue = Admission(max_queue=100, max_wait_s=1, together=4)
    with queue.admit(1):
        clock.now += 0.1
        queue.measure(1)
    clock.now += 3600
    with queue.admit(1):
        clock.now += 0.1
        queue.measure(1)
    assert queue.seconds_per_photo == pytest.approx(0.1)


def test_a_failing_request_leaves_no_place_taken() -> None:
    queue = Admission(max_queue=4, max_wait_s=1, together=4)

    def fail() -> None:
        with queue.admit(3) as leave:
            leave()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert queue.photos == 0


def test_photos_that_take_far_longer_than_before_are_noticed_while_they_do(clock: Clock) -> None:
    queue = Admission(max_queue=100, max_wait_s=1, together=4)
    queue.seconds_per_photo = 0.001
    with queue.admit(10):
        assert queue.expected_wait_s == pytest.approx(0.01)
        clock.now = 2.0
        assert queue.expected_wait_s == pytest.approx(10 * 2.0 / 4)
        with pytest.raises(Refusal), queue.admit(1):
            pass


def test_what_many_cores_have_in_hand_is_not_expected_to_wait_in_line(clock: Clock) -> None:
    queue = Admission(max_queue=1000, max_wait_s=3, together=64)
    with queue.admit(40):
        clock.now = 0.1
        assert queue.expected_wait_s < 0.1


def test_a_client_waits_for_no_more_of_another_s_photos_than_it_has_itself() -> None:
    queue = Admission(max_queue=1000, max_wait_s=1, together=4)
    queue.seconds_per_photo = 0.1
    with asked_by("busy"), queue.admit(64):
        assert queue.expected_wait_s == pytest.approx(6.4)
        with pytest.raises(Refusal), queue.admit(1):
            pass
        with asked_by("other"):
            assert queue.expected_wait_s == pytest.approx(0.1)
            with queue.admit(4):
                assert queue.expected_wait_s == pytest.approx(0.9), "four of its own and five of the other's"
        assert queue.expected_wait_s == pytest.approx(6.4), "what the other had is forgotten"


def test_one_client_s_photos_fill_the_queue_for_that_client_only() -> None:
    queue = Admission(max_queue=12, max_wait_s=100, together=4)
    with asked_by("busy"), queue.admit(9):
        with pytest.raises(Refusal), queue.admit(1):
            pass
        with asked_by("other"), queue.admit(3), pytest.raises(Refusal), queue.admit(1):
            pass


def test_however_many_clients_come_no_more_are_in_hand_than_the_queue_holds() -> None:
    queue = Admission(max_queue=12, max_wait_s=100, together=4)
    with contextlib.ExitStack() as held:
        for number in range(60):
            with asked_by(str(number)), contextlib.suppress(Refusal):
                held.enter_context(queue.admit(2))
        assert 9 <= queue.photos <= 12
    assert queue.photos == 0

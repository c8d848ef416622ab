from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune.config import ScheduleConfig
from finetune.training.schedule import rate_at, rate_in_phases
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "conf/schedule").glob("*.yaml"))


def schedule(name: str, **changes: Any) -> ScheduleConfig:
    return ScheduleConfig.model_validate({**composed(name), **changes})


def composed(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / f"conf/schedule/{name}.yaml").read_text())
    base, *_ = values.pop("defaults", ["_self_"])
    return values if base == "_self_" else composed(base) | values


def rates(config: ScheduleConfig, steps: int) -> list[float]:
    return [rate_at(config, step, steps) for step in range(steps)]


@given(st.sampled_from(NAMES), st.integers(1, 400), st.floats(0, 1))
def test_a_rate_is_a_share_of_the_peak_rises_once_and_never_again(name: str, steps: int, warmup: float) -> None:
    found = rates(schedule(name, warmup_fraction=warmup), steps)
    assert all(0 <= rate <= 1 for rate in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_after_the_rise_has_the_peak(name: str) -> None:
    assert rate_at(schedule(name, warmup_fraction=0.25), 25, 100) == 1


def test_a_cosine_is_halfway_down_halfway_and_ends_where_it_is_told() -> None:
    config = schedule("cosine", warmup_fraction=0, final=0.2)
    assert rate_at(config, 50, 100) == pytest.approx(0.6)
    assert rate_at(config, 100, 100) == pytest.approx(0.2)


def test_a_rise_is_linear() -> None:
    assert rates(schedule("none", warmup_fraction=0.4), 10) == [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]


def test_steps_fall_at_their_milestones() -> None:
    config = schedule("step", warmup_fraction=0, milestones=[0.5, 0.8], step_factor=0.1)
    assert rates(config, 10) == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_an_exponential_loses_the_same_share_at_every_step() -> None:
    found = rates(schedule("exponential", warmup_fraction=0, final=0.01), 100)
    shares = {round(after / before, 9) for before, after in pairwise(found)}
    assert shares == {round(0.01**0.01, 9)}


def test_one_cycle_begins_at_a_25th_and_ends_at_nearly_nothing() -> None:
    config = schedule("one_cycle")
    assert rate_at(config, 0, 100) == pytest.approx(1 / 25)
    assert rate_at(config, 15, 100) == pytest.approx((1 + 1 / 25) / 2)
    assert rate_at(config, 100, 100) == pytest.approx(1e-5)


def test_an_exponential_to_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="an exponential never comes to 0"):
        schedule("exponential", final=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_alone_goes_through_the_schedule_and_all_layers_through_it_again(name: str) -> None:
    config = schedule(name, after_head=0.5)
    found = [rate_in_phases(config, step, 50, head_steps=10) for step in range(50)]
    assert found[:10] == rates(config, 10)
    assert found[10:] == [0.5 * rate for rate in rates(config, 40)]
    # without such a phase there is nothing to halve
    assert [rate_in_phases(config, step, 50, head_steps=0) for step in range(50)] == rates(config, 50)


@pytest.mark.parametrize(("steps", "rising"), [(500, 100), (10_000, 500), (20_000, 500)])
def test_the_hyperrule_rises_as_its_authors_have_it(steps: int, rising: int) -> None:
    found = rates(schedule("bit"), steps)
    assert found.index(1.0) == rising
    falls = [step for step, (before, after) in enumerate(pairwise(found), 1) if after < before]
    assert falls == [pytest.approx(share * steps, abs=1) for share in (0.3, 0.6, 0.9)]
    assert found[-1] == pytest.approx(1e-3)

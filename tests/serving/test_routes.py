from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import HIDDEN_NAMES
from finetune.errors import FinetuneError
from finetune.serving.routes import Route, Target, read_routes
from tests.serving.conftest import assembled

ONE, TWO = Target("flowers", 1), Target("flowers", 2)


def test_a_name_leads_to_a_version_or_to_shares_of_several(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("production: flowers/1\nflowers: {flowers/1: 90, flowers/2: 10}\ncanary: {flowers/2: 100}\n")
    routes = read_routes(path)
    assert routes["production"].weights == {ONE: 100}
    assert routes["flowers"].weights == {ONE: 90, TWO: 10}
    assert routes["canary"].draw() == TWO


def test_a_share_of_nothing_is_drawn_never(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text("flowers: {flowers/1: 100, flowers/2: 0}\n")
    route = read_routes(path)["flowers"]
    assert {route.draw() for _ in range(50)} == {ONE}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 300))
def test_any_run_of_requests_is_shared_out_exactly(weights: list[int], requests: int) -> None:
    route = Route({Target("m", number): weight for number, weight in enumerate(weights, start=1)})
    drawn = Counter(route.draw() for _ in range(requests))
    for target, weight in route.weights.items():
        assert abs(drawn[target] - requests * weight / sum(weights)) < len(weights)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flowers: flowers", "flowers: flowers is not of the form MODEL/VERSION"),
        ("flowers: ../../etc/1", "is not of the form MODEL/VERSION"),
        ("flowers: ../1", "is not of the form MODEL/VERSION"),
        ("flowers: .flowers/1", "is not of the form MODEL/VERSION"),
        ("flowers: /1", "is not of the form MODEL/VERSION"),
        ("flowers: {flowers/1: 90, flowers/2: 20}", "the shares add up to 110, not to 100"),
        ("flowers: {flowers/1: -10, flowers/2: 110}", "-10 is no share of 0 to 100"),
        ("flowers: {flowers/1: yes}", "True is no share of 0 to 100"),
        ("- flowers/1", "it must be a mapping"),
        ("a: flowers/1\nflowers: {flowers/1", "routes.yaml, line 2 cannot be read: expected ',' or '}'"),
        ("a: flowers/1\nb: flowers/1\na: flowers/2", "routes.yaml, line 3 cannot be read: found duplicate key a"),
        ("stats: flowers/1", "/v2/models/stats counts what all models did: give stats another name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(text)
    with pytest.raises(FinetuneError) as error:
        read_routes(path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)


def test_names_that_a_route_of_ours_hides_are_those_that_are_refused(tiny_models: Path) -> None:
    parts = [path.split("/") for path in assembled(tiny_models).app.openapi()["paths"]]
    hidden = {
        fixed[named.index("{name}")]
        for named in parts
        for fixed in parts
        if "{name}" in named and "{name}" not in fixed and len(named) == len(fixed)
        if all(theirs in (ours, "{name}") for ours, theirs in zip(fixed, named, strict=True))
    }
    assert hidden == {*HIDDEN_NAMES}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"none\.yaml cannot be read"):
        read_routes(tmp_path / "none.yaml")

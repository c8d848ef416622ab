"""A part of docs/exports.md, made anew."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import timm

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("exports", ROOT / "scripts/exports.py")
assert spec is not None
assert spec.loader is not None
script: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs/exports.md").read_text().splitlines()
    if line.startswith("| ")
][2:]
# a convolutional network, one that normalises before it convolves, tokens, windows, and one that mixes both
SAMPLE = ("byobnet", "convnext", "resnetv2", "vision_transformer", "swin_transformer_v2_cr", "mobilevit")


def test_the_table_has_timm_s_modules_with_their_smallest_architectures() -> None:
    assert {row[0]: row[1] for row in ROWS}.items() <= script.smallest().items()
    assert sorted(script.smallest()) == sorted(timm.list_modules())


def test_every_line_is_within_the_limit_of_a_bundle() -> None:
    assert [row for row in ROWS if not all(float(cell) <= 1e-4 for cell in row[4:])] == []


@pytest.mark.parametrize("head", script.HEADS)
@pytest.mark.parametrize("module", SAMPLE)
def test_an_exported_network_answers_as_torch_does(module: str, head: str) -> None:
    made = script.measure(script.smallest()[module], head)
    assert made["largest"] <= 1e-4
    assert made["spread"] > 0.002, "the photos get answers so alike that nothing is proved"

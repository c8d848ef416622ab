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
# Why modules cannot be exported, as the table says it.
KNOWN_REASONS: set[str] = set()
# a convolutional network, one that normalises before it convolves, tokens, windows, and one that mixes both
SAMPLE = ("byobnet", "convnext", "resnetv2", "vision_transformer", "swin_transformer_v2_cr", "mobilevit")


def within_limit(cell: str) -> bool:
    """Whether a cell of the table is a difference that a bundle may have, or a known reason why there is none."""
    try:
        return float(cell) <= 1e-4
    except ValueError:
        return cell in KNOWN_REASONS


def test_the_table_has_all_of_timm_s_modules_with_their_smallest_architectures() -> None:
    assert {row[0]: row[1] for row in ROWS} == script.smallest()
    assert sorted(script.smallest()) == sorted(timm.list_modules())


def test_every_line_is_within_the_limit_of_a_bundle() -> None:
    assert [row for row in ROWS if len(row) != 6 or not all(map(within_limit, row[4:]))] == []


def test_what_cannot_be_exported_is_told_in_one_cell() -> None:
    row = {"module": "m", "name": "n", "error": "ValueError: a | b"}
    done = {"module": "m", "name": "n", "image_size": 64, "nodes": 9, "largest": 3e-7}
    assert script.line(done, row) == r"| m | n | 64 | 9 | 3e-07 | ValueError: a \| b |"
    assert script.line(row, row) == r"| m | n |  |  | ValueError: a \| b | ValueError: a \| b |"
    assert not within_limit(r"ValueError: a \| b")


@pytest.mark.parametrize("head", script.HEADS)
@pytest.mark.parametrize("module", SAMPLE)
def test_an_exported_network_answers_as_torch_does(module: str, head: str) -> None:
    made = script.measure(script.smallest()[module], head)
    assert made["largest"] <= 1e-4
    assert made["spread"] > 0.002, "the photos get answers so alike that nothing is proved"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.export.halves import to_bf16, to_fp16
from finetune.export.timing import Speed
from finetune.export.variant_table import variant_table
from finetune.export.variants import WORTH, Gate, Score, Variant, choose, measure
from tests.export.graphs import answers, noise, steep_graph

PHOTOS = noise(40)


class Passes:
    """Photos in batches of 8, counting how often they are gone through."""

    def __init__(self) -> None:
        self.begun = 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.begun += 1
        yield from (PHOTOS[start : start + 8] for start in range(0, len(PHOTOS), 8))


def gate(graph: onnx.ModelProto, wrong: int = 0, limit: float = 0.005) -> Gate:
    """Targets are what the graph answers, but for the first few photos."""
    targets = answers(graph, PHOTOS).argmax(1)
    targets[:wrong] = (targets[:wrong] + 1) % 3
    return Gate(graph, Passes(), [int(target) for target in targets], "cpu", limit)


def turned(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its classes in another order: it is always wrong."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "classifier.head.linear.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(weight), 1, axis=0), weight.name))
    return other


def test_a_score_is_against_the_targets_and_against_fp32() -> None:
    graph = steep_graph(1.0)
    judged = gate(graph, wrong=10)
    assert judged.score(graph) == Score(photos=40, accuracy=0.75, agreement=1.0, largest_difference=0.0)
    other = judged.score(turned(graph))
    assert other.agreement == 0.0
    assert 0.3 < other.largest_difference <= 1


def test_a_graph_is_run_over_the_photos_once() -> None:
    graph = steep_graph(1.0)
    judged = gate(graph)
    half = to_fp16(graph)
    assert judged.accepts(half)
    assert judged.accepts(half)
    judged.score(graph)
    assert judged.photos.begun == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lost", "limit", "passes"), [(0, 0.0, True), (1, 0.02, False), (1, 0.025, True), (3, 0.08, True)]
)
def test_the_limit_itself_may_be_lost(lost: int, limit: float, passes: bool) -> None:
    judged = gate(steep_graph(1.0), limit=limit)
    refusal = judged.refusal(Score(40, (40 - lost) / 40, 1.0, 0.0))
    assert (refusal == "") == passes


def test_a_refusal_says_by_how_much() -> None:
    graph = steep_graph(1.0)
    refusal = gate(graph, limit=0.01).refusal(Score(40, 0.95, 1.0, 0.0))
    assert refusal == "loses 5.0 points of accuracy (100.0 to 95.0 %), more than max_accuracy_loss=0.01"


def silent(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with a logit that is no number, for every photo."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "classifier.head.linear.weight")
    weights = onnx.numpy_helper.to_array(weight).copy()
    weights[1, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(weights, weight.name))
    return other


def test_no_number_is_no_answer_even_where_all_may_be_lost() -> None:
    """To argmax it would be the first class."""
    graph = steep_graph(1.0)
    judged = Gate(graph, Passes(), [0] * len(PHOTOS), "cpu", max_accuracy_loss=1)
    score = judged.score(silent(graph))
    assert (score.accuracy, score.agreement, score.unanswered) == (0, 0, 40)
    assert judged.refusal(score) == "answers 40 of 40 photos with no number"
    assert not judged.accepts(silent(graph))


def test_variants_are_measured_and_what_does_not_run_says_why() -> None:
    graph = steep_graph(1.0)
    variants = measure(
        {"fp32": graph, "fp16": to_fp16(graph), "bf16": to_bf16(graph), "bad": turned(graph)}, gate(graph)
    )
    exact, half, brain, bad = variants
    assert (exact.passes, half.passes, brain.passes, bad.passes) == (True, True, False, False)
    assert exact.speed is not None
    assert set(exact.speed.photos_a_second) == {"alone", "busy"}
    assert brain.score is None
    assert brain.reason.startswith("does not run on this device: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED")
    assert bad.reason.startswith("loses 100.0 points of accuracy (100.0 to 0.0 %)")
    lines = variant_table(variants).splitlines()
    header = "precision MB photos/s, alone photos/s, busy speed accuracy agrees difference passes"
    assert " ".join(lines[0].split()) == header
    assert [line.split()[0] for line in lines[1:]] == ["fp32", "fp16", "bf16", "bad", "bf16", "bad", "accuracy"]
    assert lines[-1] == "accuracy is of 40 photos: one is 2.5 points"
    assert len({len(line) for line in lines[:5]}) == 1
    assert "100.0 %" in lines[1]
    assert lines[3].split()[2:] == ["-"] * 6 + ["no"]
    assert choose(variants, "bf16")[0] is exact
    chosen, why = choose(variants, "bad")
    assert chosen is exact
    assert why == "bad is not published; fp32 is kept"


SCORE = Score(40, 1.0, 1.0, 0.0)
FP32 = Variant("fp32", onnx.ModelProto(), Speed({1: 100.0, 8: 200.0}, (1.0, 1.0)), SCORE, passes=True, reason="")


def made(gains: tuple[float, ...], passes: bool = True) -> Variant:
    return replace(FP32, name="int8", speed=Speed({1: 100.0, 8: 200.0}, gains), passes=passes, reason="loses")


def test_auto_takes_the_fastest_that_passes() -> None:
    fast = replace(made((2.9, 3.0, 3.2)), name="mixed")
    chosen, why = choose([FP32, made((9.0, 9.0), passes=False), made((2.0, 2.0)), fast], "auto")
    assert chosen is fast
    assert why == "mixed: the fastest that passes, 3.00 times as fast as fp32 (2.95 to 3.10)"


def test_auto_takes_no_gain_that_is_noise() -> None:
    """In the median it is 1.2 times as fast, but in one of three rounds it is slower."""
    chosen, why = choose([FP32, made((0.9, 0.95, 1.2, 1.2, 1.3, 1.4))], "auto")
    assert chosen is FP32
    assert why == "fp32: no other that passes is faster by 5 % in three of four rounds"


GAINS = st.lists(st.floats(0.1, 10), min_size=2, max_size=6).map(tuple)


@given(st.lists(st.tuples(GAINS, st.booleans()), max_size=5))
def test_auto_never_takes_what_fails_or_gains_nothing(drawn: list[tuple[tuple[float, ...], bool]]) -> None:
    variants = [FP32, *(replace(made(gains, passes), name=str(n)) for n, (gains, passes) in enumerate(drawn))]
    chosen, why = choose(variants, "auto")
    assert chosen.passes
    assert chosen.speed is not None
    assert why.startswith(f"{chosen.name}: ")
    if chosen is not FP32:
        assert chosen.speed.gain > WORTH


def test_a_precision_that_passes_is_taken_even_if_it_is_slow() -> None:
    slow = made((0.5, 0.5))
    assert choose([FP32, slow], "int8") == (slow, "int8: as asked")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(FinetuneError, match="precision=int9 is none of fp32, int8, auto; did you mean 'int8'"):
        choose([FP32, made((1.0, 1.0))], "int9")

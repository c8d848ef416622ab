from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import FrameType
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from finetune.serving.metrics import Metrics
from finetune.serving.model_metrics import COUNTED_CLASSES, SECONDS, ModelMetrics
from finetune.serving.request_times import RequestTimes
from tests.conftest import ROOT

FLOWERS = {"model": "flowers", "version": "1"}
LABELS = ("daisy", "rose")
ANSWERS = np.array([[0.75, 0.25], [0.125, 0.875], [0.25, 0.75]], np.float32)
# As Triton's documentation has them, docs/user_guide/metrics.md.
TRITON = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
}


def load(metrics: Metrics, name: str = "flowers", version: str = "1", **changes: Any) -> ModelMetrics:
    given = {"provider": "cpu", "why": "no GPU", "precision": "int8", "labels": LABELS, "reference": ANSWERS}
    return metrics.loaded(name, version, **{**given, **changes})


def serve(metrics: Metrics) -> ModelMetrics:
    """Call everything once: two requests of one and two photos that ran together, and what goes wrong."""
    metrics.ready(True)
    metrics.draining(False)
    metrics.refused("queue_full")
    metrics.load_failed("broken")
    model = load(metrics)
    with metrics.in_flight.track_inprogress():
        for _ in range(3):
            model.pending(1)
            model.decoded(0.004)
        for _ in range(3):
            model.waited(0.002)
            model.pending(-1)
        model.ran(3, 0.03)
        model.answered(ANSWERS)
        for photos, request_s in ((1, 0.04), (2, 0.05)):
            times = RequestTimes()
            for _ in range(photos):
                times.decoded(0.004)
                times.ran(0.002, 0.03)
            model.succeeded(photos, request_s, times)
            model.formatted(0.00001)
        model.failed("CANCELED", 0.5)
        metrics.request("/predict", 200, 0.04)
    return model


def samples(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    # this parser, unlike Prometheus's own, adds _total to the name of a counter that has none
    text = re.sub(r"(?m)^(# TYPE nv_\w+) counter$", r"\1 untyped", metrics.text()[0].decode())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(metrics: Metrics, name: str, **labels: str) -> float:
    (found,) = [number for other, given, number in samples(metrics) if (other, given) == (name, labels)]
    return found


def names(metrics: Metrics) -> set[str]:
    return {name for name, _, _ in samples(metrics)}


def test_requests_refusals_and_states_are_counted() -> None:
    metrics = Metrics()
    assert value(metrics, "finetune_ready") == 0
    serve(metrics)
    assert value(metrics, "finetune_requests_total", route="/predict", code="200") == 1
    assert value(metrics, "finetune_request_seconds_count", route="/predict") == 1
    assert value(metrics, "finetune_request_seconds_sum", route="/predict") == pytest.approx(0.04)
    assert value(metrics, "finetune_refusals_total", reason="queue_full") == 1
    assert value(metrics, "finetune_requests_in_flight") == 0
    assert value(metrics, "finetune_ready") == 1
    assert value(metrics, "finetune_draining") == 0
    assert value(metrics, "finetune_model_load_failures_total", model="broken") == 1
    assert value(metrics, "finetune_model_load_failures_total", model="flowers") == 0


def test_a_model_s_photos_are_counted() -> None:
    metrics = Metrics()
    serve(metrics)
    for name, count, total in (
        ("decode_seconds", 3, 0.012),
        ("wait_seconds", 3, 0.006),
        ("run_seconds", 1, 0.03),
        ("batch_photos", 1, 3),
        ("confidence", 3, 2.375),
    ):
        assert value(metrics, f"finetune_{name}_count", **FLOWERS) == count
        assert value(metrics, f"finetune_{name}_sum", **FLOWERS) == pytest.approx(total)
    assert value(metrics, "finetune_batch_photos_bucket", **FLOWERS, le="2.0") == 0
    assert value(metrics, "finetune_batch_photos_bucket", **FLOWERS, le="4.0") == 1
    assert value(metrics, "finetune_predictions_total", **FLOWERS, label="daisy") == 1
    assert value(metrics, "finetune_predictions_total", **FLOWERS, label="rose") == 2
    assert value(metrics, "finetune_pending_photos", **FLOWERS) == 0
    info = {"provider": "cpu", "why": "no GPU", "precision": "int8"}
    assert value(metrics, "finetune_model_info", **FLOWERS, **info) == 1
    assert value(metrics, "finetune_drift_photos", **FLOWERS) == pytest.approx(3, abs=1e-3)
    for of in ("classes", "confidence"):
        assert value(metrics, "finetune_drift_psi", **FLOWERS, of=of) == pytest.approx(0, abs=1e-4)
        assert value(metrics, "finetune_drift_alert", **FLOWERS, of=of) == 0


def test_the_statistics_have_the_protocol_s_form() -> None:
    before = time.time_ns() // 1_000_000
    statistics = serve(Metrics()).statistics()
    assert before <= statistics.pop("last_inference") <= time.time_ns() // 1_000_000
    assert json.loads(json.dumps(statistics)) == {
        "name": "flowers",
        "version": "1",
        "inference_count": 3,
        "execution_count": 1,
        "inference_stats": {
            "success": {"count": 2, "ns": 90_000_000},
            "fail": {"count": 1, "ns": 500_000_000},
            "queue": {"count": 2, "ns": 4_000_000},
            "compute_input": {"count": 2, "ns": 8_000_000},
            "compute_infer": {"count": 2, "ns": 60_000_000},
            "compute_output": {"count": 2, "ns": 20_000},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": 3,
                "compute_input": {"count": 1, "ns": 0},
                "compute_infer": {"count": 1, "ns": 30_000_000},
                "compute_output": {"count": 1, "ns": 0},
            }
        ],
    }
    assert load(Metrics()).statistics()["last_inference"] == 0


def test_a_request_s_times_are_those_of_the_photo_that_took_longest() -> None:
    times = RequestTimes()
    for seconds in (0.1, 0.3, 0.2):
        times.decoded(seconds)
        times.ran(2 * seconds, 3 * seconds)
    assert (times.decoded_s, times.waited_s, times.ran_s) == pytest.approx((0.3, 0.6, 0.9))


def test_triton_s_names_are_exact_with_their_types() -> None:
    metrics = Metrics()
    serve(metrics)
    text, content_type = metrics.text()
    types = dict(re.findall(r"(?m)^# TYPE (nv_\w+) (\w+)$", text.decode()))
    assert types == TRITON
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    lines = text.decode().splitlines()
    for line in (
        'nv_inference_request_success{model="flowers",version="1"} 2.0',
        'nv_inference_request_failure{model="flowers",reason="CANCELED",version="1"} 1.0',
        'nv_inference_request_failure{model="flowers",reason="BACKEND",version="1"} 0.0',
        'nv_inference_count{model="flowers",version="1"} 3.0',
        'nv_inference_exec_count{model="flowers",version="1"} 1.0',
        'nv_inference_request_duration_us{model="flowers",version="1"} 90000.0',
        'nv_inference_queue_duration_us{model="flowers",version="1"} 4000.0',
        'nv_inference_compute_input_duration_us{model="flowers",version="1"} 8000.0',
        'nv_inference_compute_infer_duration_us{model="flowers",version="1"} 60000.0',
        'nv_inference_compute_output_duration_us{model="flowers",version="1"} 20.0',
        'nv_inference_pending_request_count{model="flowers",version="1"} 0.0',
    ):
        assert line in lines


def test_no_label_s_text_can_change_a_type() -> None:
    metrics = Metrics()
    load(metrics, why="\n# TYPE nv_forged untyped\n", labels=('da"isy\n# TYPE nv_other untyped', "rose"))
    text = metrics.text()[0].decode()
    assert "nv_forged counter" not in text
    assert set(re.findall(r"(?m)^# TYPE (nv_\w+)", text)) == set(TRITON)


def test_an_unloaded_model_leaves_nothing_and_comes_back_at_zero() -> None:
    metrics = Metrics()
    model = serve(metrics)
    assert metrics.models == [model]
    metrics.unloaded("flowers", "1")
    # a request that is still running goes on counting, unseen
    model.decoded(0.1)
    model.answered(ANSWERS)
    assert not [labels for _, labels, _ in samples(metrics) if "version" in labels]
    assert not metrics.models
    metrics.unloaded("flowers", "1")
    again = load(metrics, "flowers", "1", labels=("rose", "tulip"))
    assert metrics.models == [again]
    assert value(metrics, "finetune_decode_seconds_count", **FLOWERS) == 0
    assert {labels["label"] for _, labels, _ in samples(metrics) if "label" in labels} == {"rose", "tulip"}


def test_versions_and_servers_are_counted_apart() -> None:
    metrics, other = Metrics(), Metrics()
    serve(metrics)
    load(metrics, "flowers", "2").ran(8, 0.1)
    load(other)
    assert value(metrics, "nv_inference_exec_count", model="flowers", version="2") == 1
    assert value(metrics, "nv_inference_exec_count", **FLOWERS) == 1
    assert value(other, "nv_inference_exec_count", **FLOWERS) == 0
    assert [model.version for model in metrics.models] == ["1", "2"]
    assert not any("finetune_" in name for name in REGISTRY._names_to_collectors)


def test_a_model_of_a_thousand_classes_has_a_hundred_series_and_one() -> None:
    metrics = Metrics()
    model = load(metrics, labels=[f"class {number}" for number in range(1000)], reference=None)
    model.answered(np.eye(1000, dtype=np.float32)[[0, 99, 100, 999]])
    counts = {
        labels["label"]: number for name, labels, number in samples(metrics) if name == "finetune_predictions_total"
    }
    assert len(counts) == COUNTED_CLASSES + 1
    assert {label: count for label, count in counts.items() if count} == {"class 0": 1, "class 99": 1, "other": 2}


@pytest.mark.parametrize("reference", [None, np.ones((5, 3), np.float32)])
def test_without_a_reference_that_fits_there_is_no_drift(reference: np.ndarray | None) -> None:
    metrics = Metrics()
    model = load(metrics, reference=reference)
    model.answered(ANSWERS)
    assert not model.drift.has_reference
    assert not any(name.startswith("finetune_drift") for name in names(metrics))


def test_answers_that_are_no_numbers_do_not_spoil_the_rest() -> None:
    metrics = Metrics()
    model = load(metrics)
    model.answered(np.array([[np.nan, 0.5], [0.25, 0.75]], np.float32))
    model.answered(np.empty((0, 2), np.float32))
    assert value(metrics, "finetune_confidence_sum", **FLOWERS) == pytest.approx(0.75)
    assert value(metrics, "finetune_predictions_total", **FLOWERS, label="daisy") == 0


def test_threads_lose_no_count_while_others_read_load_and_unload() -> None:
    metrics = Metrics()
    model = load(metrics)

    def count(_: int) -> None:
        for _ in range(200):
            model.pending(1)
            model.ran(2, 0.01)
            model.answered(ANSWERS)
            metrics.request("/predict", 200, 0.01)
            model.pending(-1)

    def look(turn: int) -> None:
        load(metrics, "passing", str(turn))
        metrics.text()
        metrics.unloaded("passing", str(turn))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, range(4))) == [None] * 4
        assert list(pool.map(look, range(20))) == [None] * 20
    assert model.statistics()["execution_count"] == 800
    assert value(metrics, "finetune_predictions_total", **FLOWERS, label="rose") == 1600
    assert value(metrics, "finetune_requests_total", route="/predict", code="200") == 800
    assert value(metrics, "finetune_pending_photos", **FLOWERS) == 0


def steps_of(function: Callable[[], None]) -> tuple[int, set[str]]:
    """Return how many instructions of Python a call takes, and the names of all functions that it gets to."""
    steps, called = 0, set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if event == "call":
            frame.f_trace_opcodes = True
            called.add(frame.f_code.co_name)
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return steps, called


def test_a_request_s_calls_look_nothing_up_and_scan_nothing() -> None:
    """Neither more classes nor all the requests before make them longer."""
    metrics, steps = Metrics(), []

    def request(model: ModelMetrics, probabilities: np.ndarray) -> None:
        metrics.in_flight.inc()
        model.pending(1)
        model.decoded(0.004)
        model.waited(0.002)
        model.pending(-1)
        model.ran(1, 0.006)
        model.answered(probabilities)
        times = RequestTimes()
        times.decoded(0.004)
        times.ran(0.002, 0.006)
        model.succeeded(1, 0.013, times)
        model.formatted(0.00001)
        metrics.request("/predict", 200, 0.013)
        metrics.in_flight.dec()

    for classes in (10, 1000):
        reference = np.full((1000, classes), 0.25 / (classes - 1), np.float32)
        reference[np.arange(1000), np.arange(1000) % classes] = 0.75
        model = load(metrics, labels=[str(number) for number in range(classes)], reference=reference)
        # the last class is the last of any scan
        asked = functools.partial(request, model, reference[classes - 1 : classes])
        # the first of a route and a status looks them up
        asked()
        for _ in range(2):
            count, called = steps_of(asked)
            steps.append(count)
            assert "observe" in called
            assert "labels" not in called
            for _ in range(500):
                asked()
    assert steps == [steps[0]] * 4


def test_buckets_resolve_a_millisecond_and_reach_ten_seconds() -> None:
    assert (SECONDS[0], SECONDS[-1]) == (0.001, 10.0)
    assert all(high / low <= 2 for low, high in pairwise(SECONDS))


DASHBOARD = json.loads((ROOT / "docs/grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_for_nothing_that_is_not_there() -> None:
    metrics = Metrics()
    serve(metrics)
    known = names(metrics)
    labels = {name: set(given) | {"instance"} for name, given, _ in samples(metrics)}
    asked = set()
    for panel in PANELS:
        for target in panel["targets"]:
            for name, selector in re.findall(r"\b((?:finetune|nv)_\w+)\{([^}]*)\}", target["expr"]):
                asked.add(name)
                assert set(re.findall(r"(\w+)=~", selector)) <= labels[name], target["expr"]
            assert len(re.findall(r"\b(?:finetune|nv)_\w+", target["expr"])) == target["expr"].count("{")
            assert all(target["expr"].count(a) == target["expr"].count(b) for a, b in ("()", "{}", "[]"))
    for variable in DASHBOARD["templating"]["list"]:
        asked |= set(re.findall(r"\b(?:finetune|nv)_\w+", variable.get("definition", "")))
    assert asked <= known
    # and leaves out nothing that is ours
    bare = {re.sub("_(bucket|sum|count|total)$", "", name) for name in known if name.startswith("finetune_")}
    assert bare == {re.sub("_(bucket|sum|count|total)$", "", name) for name in asked if name.startswith("finetune_")}


def test_the_dashboard_s_panels_have_a_place_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    sources = [part["datasource"] for panel in PANELS for part in (panel, *panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)

"""Numbers of `finetune serve` that no server could work with are refused by name; those at their bounds are served."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.schema import parse
from tests.conftest import run_finetune
from tests.serving.conftest import Start, serve_config

HUGE = 10**30
# of these, it means none
MAY_BE_NOTHING = {"port", "reload_s", "drain_s", "batch.delay_ms"}


def numbers() -> Iterator[tuple[str, float]]:
    """Yield each key that takes a number, with the largest that it takes."""
    whole = ServeConfig.model_json_schema()

    def walk(schema: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
        for name, field in schema["properties"].items():
            if "$ref" in field:
                yield from walk(whole["$defs"][field["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            for one in field.get("anyOf", [field]):
                if one.get("type") in ("integer", "number"):
                    # one without a bound fails here
                    yield prefix + name, one["maximum"]

    yield from walk(whole, "")


KEYS = dict(numbers())


def composed(key: str, value: object) -> dict[str, Any]:
    values = serve_config(Path("models")).model_dump(mode="json")
    *groups, name = key.split(".")
    section = values[groups[0]] if groups else values
    section[name] = value
    return values


def test_all_numbers_are_known() -> None:
    assert {"port", "grpc_port", "threads", "grace_s", "batch.photos", "limits.idle_s", "limits.per_client"} < {*KEYS}
    assert len(KEYS) == 21


@pytest.mark.parametrize("value", [math.inf, math.nan, -1, 0, HUGE, float(HUGE)], ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_what_no_server_works_with_is_refused_by_name(key: str, value: float) -> None:
    if value == 0 and key in MAY_BE_NOTHING:
        parse(ServeConfig, composed(key, value))
        return
    with pytest.raises(FinetuneError, match=rf"(?m)^{re.escape(f'{key}={value}')} is wrong: .* \(.+\)$"):
        parse(ServeConfig, composed(key, value))


@pytest.mark.parametrize("seconds", [1e-6, 0.049])
def test_a_repository_is_not_looked_at_all_the_time(seconds: float) -> None:
    with pytest.raises(FinetuneError, match=rf"^reload_s={seconds} is wrong: give 0, or 0.05 and more \("):
        parse(ServeConfig, composed("reload_s", seconds))
    parse(ServeConfig, composed("reload_s", 0.05))


def test_the_command_line_says_so(tiny_models: Path) -> None:
    wrong = ("limits.idle_s=inf", "limits.header_s=.nan", "threads=1000")
    done = run_finetune("serve", f"models={tiny_models}", "logs=text", *wrong)
    assert done.returncode == 2
    keys = [line.removeprefix("finetune serve: ").partition("=")[0] for line in done.stderr.splitlines()]
    assert keys == ["threads", "limits.header_s", "limits.idle_s"]
    assert "limits.idle_s=inf is wrong: input should be less than or equal to 86400 (time that a" in done.stderr


def test_the_largest_of_all_of_them_are_served(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    elsewhere = {"port", "grpc_port", "gpu_memory_mb", "threads"}
    start_server(tiny_models, *(f"{key}={KEYS[key]}" for key in {*KEYS} - elsewhere)).require_well(red_photo)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("limits.held_mb", 26.6, "held_mb=26.6 is too small for body_mb=20: .* give 27 or more"),
        ("limits.queue_photos", 63, "queue_photos is smaller than photos"),
    ],
)
def test_limits_that_no_request_of_the_largest_size_could_pass_are_refused(key: str, value: float, said: str) -> None:
    with pytest.raises(FinetuneError, match=said):
        parse(ServeConfig, composed(key, value))
    parse(ServeConfig, composed(key, math.floor(value) + 1))

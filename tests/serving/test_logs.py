from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextvars import copy_context
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.serving.logs import Form, JsonFormatter, TextFormatter, flush, request_id, set_up
from tests.conftest import run_finetune

FORGED = 'x\n{"level": "error"}\r\nERROR forged\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x1b[2K\x9b2K\u202eend\ud800'
LOGGERS = ("finetune", "uvicorn", "uvicorn.error")


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def record(
    message: object = "said", *words: object, fields: object = None, error: Exception | None = None
) -> logging.LogRecord:
    raised = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("finetune.serving", logging.WARNING, __file__, 1, message, words, raised)
    if fields is not None:
        made.fields = fields
    return made


def test_a_json_line_says_when_who_and_what() -> None:
    entry = json.loads(JsonFormatter().format(record("%d photos", 3, fields={"seconds": 0.25, "labels": ["a", "ä"]})))
    time = entry.pop("time")
    assert entry == {
        "level": "warning",
        "logger": "finetune.serving",
        "message": "3 photos",
        "seconds": 0.25,
        "labels": ["a", "ä"],
    }
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert time.endswith("Z")
    assert abs(datetime.fromisoformat(time).timestamp() - datetime.now().timestamp()) < 60


REFUSED = [["limits.body_mb=-1", "port=x"], ["no_key=1"], ["models=none"], ["tls_cert=none", "tls_key=none"], ["port"]]


@pytest.mark.parametrize("words", [*REFUSED, ["logs=json", "port"], ["logs=xml"]], ids=" ".join)
def test_a_refused_start_is_told_in_json_where_there_is_no_terminal(tiny_models: Path, words: list[str]) -> None:
    done = run_finetune("serve", f"models={tiny_models}", *words)
    assert done.returncode == 2
    *_, last = [json.loads(line) for line in done.stderr.splitlines()]
    assert last["level"] == "error"
    assert last["message"].startswith("finetune serve: ")


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        ([], "finetune serve: models is missing"),
        (["logs=auto"], "finetune serve: models is missing"),
        (["logs=json", "logs=text"], "finetune serve: models is missing"),
        (["logs=json"], '{"time": '),
    ],
)
def test_on_a_terminal_a_refused_start_is_told_as_it_is_asked_for(words: list[str], begins: str) -> None:
    reading, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-m", "finetune", "serve", *words], stderr=terminal) as process:
        os.close(terminal)
        assert os.read(reading, 65536).decode().startswith(begins)
        assert process.wait(60) == 2
    os.close(reading)


def test_warnings_and_what_ends_the_program_are_lines_of_the_log() -> None:
    script = (
        "import warnings\nfrom finetune.serving.logs import set_up\nset_up('json')\n"
        "warnings.warn('odd', stacklevel=1)\nraise ArithmeticError('worse')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    warning, fault = [json.loads(line) for line in done.stderr.splitlines()]
    assert "odd" in warning["message"]
    assert (fault["level"], fault["exception"].splitlines()[-1]) == ("critical", "ArithmeticError: worse")


def test_a_text_line_is_the_message_and_its_fields() -> None:
    line = TextFormatter().format(
        record("refused", fields={"reason": "queue full", "photos": 3, "none": "", "a": "b=c"})
    )
    assert line == 'refused  reason="queue full" photos=3 none="" a="b=c"'
    assert TextFormatter().format(record("as it is")) == "as it is"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_the_request_s_id_stands_in_every_line_of_its_context(formatter: logging.Formatter) -> None:
    def within() -> str:
        request_id.set("abc")
        return formatter.format(record(fields={"request_id": "another"}))

    said = copy_context().run(within)
    assert "abc" in said
    assert "another" not in said
    assert "request_id" not in formatter.format(record())


def test_fields_cannot_pass_for_what_the_program_says() -> None:
    entry = json.loads(JsonFormatter().format(record(fields={"level": "debug", "message": "forged", "time": "never"})))
    assert (entry["level"], entry["message"]) == ("warning", "said")
    assert entry["time"] != "never"


def test_an_exception_is_a_field_or_indented_lines() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        caught = record(error=error)
    entry = json.loads(JsonFormatter().format(caught))
    assert entry["exception"].startswith("Traceback")
    first, *below = TextFormatter().format(caught).split("\n")
    assert first == "said"
    assert below[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in below)


@pytest.mark.parametrize(
    "made",
    [
        record(FORGED),
        record("%s", FORGED),
        record(fields={"name": FORGED}),
        record(fields={FORGED: 1}),
        record(fields={"name": [FORGED]}),
        record(fields=FORGED),
    ],
)
def test_what_a_client_sends_stays_in_its_line(made: logging.LogRecord) -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(made)
        assert len(line.splitlines()) == 1
        assert line.isprintable()


SELF: list[object] = []
SELF.append(SELF)
DEEP: object = 1
for _ in range(10 * sys.getrecursionlimit()):
    DEEP = [DEEP]


@pytest.mark.parametrize("odd", [Hostile(), SELF, {(1, 2): 3}, {1: Hostile()}, float("nan"), b"\xff", object, DEEP])
def test_odd_values_are_logged_and_the_rest_stays_as_it_is(odd: object) -> None:
    entry = json.loads(JsonFormatter().format(record(fields={"odd": odd, "status": 200})), parse_constant=pytest.fail)
    assert entry["status"] == 200
    assert "odd" in entry
    assert TextFormatter().format(record(fields={"odd": odd, "status": 200})).endswith(" status=200")


@pytest.mark.parametrize(
    "made",
    [
        record("%d", "no number"),
        record("%s %s", 1),
        record("%s", Hostile()),
        record(Hostile()),
        record(None),
        record(fields=Hostile()),
        record(fields={Hostile(): 1}),
        record(error=HostileError()),
    ],
)
def test_a_formatter_never_raises(made: logging.LogRecord) -> None:
    assert json.loads(JsonFormatter().format(made))["level"] == "warning"
    assert TextFormatter().format(made)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(message=st.text(st.characters()), fields=st.dictionaries(st.text(st.characters()) | st.integers(), VALUES))
def test_any_message_and_fields_make_one_line(message: str, fields: dict[object, object]) -> None:
    made = record(message, fields=fields)
    line = JsonFormatter().format(made)
    entry = json.loads(line, parse_constant=pytest.fail)
    assert entry["message"] == message.removesuffix("\n")
    assert set(map(str, fields)) <= set(entry)
    assert len(line.splitlines()) == 1
    text = TextFormatter().format(made)
    assert text == "" or len(text.splitlines()) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_uvicorn_s_words_and_all_others_go_through_the_same_formatter_once(form: Form, tmp_path: Path) -> None:
    with (tmp_path / "former").open("w") as former, (tmp_path / "log").open("w") as stream:
        logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(stream))
        set_up(form, former.fileno())
        set_up(form, stream.fileno())
        logging.getLogger("finetune.serving.app").info("ours", extra={"fields": {"photos": 1}})
        logging.getLogger("uvicorn.error").error("theirs\n", extra={"color_message": "\x1b[1mtheirs"})
        logging.getLogger("uvicorn.error").info("Started server process")
        logging.getLogger("asyncio").error("a task died")
        flush()
    lines = (tmp_path / "log").read_text().splitlines()
    if form == "text":
        assert lines == ["ours  photos=1", "theirs", "a task died"]
    else:
        assert [json.loads(line)["message"] for line in lines] == ["ours", "theirs", "a task died"]


def test_those_who_listen_already_go_on_hearing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        set_up("json", stream.fileno())
        logging.getLogger("finetune").info("heard")
        flush()
    assert caplog.messages == ["heard"]

"""The server's log: one line an event, as JSON for machines or as text for a terminal.

Structure goes in as `log.info("refused", extra={"fields": {"reason": "queue_full"}})`. Whatever a client sends stays
inside the line that it is logged in.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from finetune.serving.log_writer import LONGEST_END_S, LogWriter

# Set for each request; run_in_executor starts a thread without it, asyncio.to_thread with it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

STDERR = 2
Form = Literal["text", "json"]
Fields = dict[str, Any]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ms), level, logger, message, request_id, then fields and exception."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: Fields = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        # a field cannot pass for what the program itself says
        entry = entry | {key: value for key, value in _fields(record).items() if key not in entry}
        if trace := _trace(self, record):
            entry["exception"] = trace
        # json.dumps escapes all but ASCII, and so every kind of line end
        try:
            return json.dumps(entry, default=_shown, allow_nan=False)
        except Exception:
            # one field that cannot be written does not take the others along
            return "{" + ", ".join(f"{json.dumps(key)}: {_json(value)}" for key, value in entry.items()) + "}"


class TextFormatter(logging.Formatter):
    """For a terminal: the message, two blanks, key=value for each field; an exception's lines follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{_printable(key)}={_word(value)}" for key, value in _fields(record).items()]
        line = _printable(_message(record)) + ("  " + " ".join(fields) if fields else "")
        trace = _trace(self, record)
        return "\n".join([line, *(f"    {_printable(below)}" for below in trace.split("\n") if trace)])


def form_of(asked: str) -> Form:
    """Return the form that `logs=` asks for; auto, and what is about to be refused: text on a terminal, else JSON."""
    return "json" if asked == "json" or (asked != "text" and not sys.stderr.isatty()) else "text"


def set_up(form: Form, descriptor: int = STDERR) -> None:
    """Send the program's log, uvicorn's and that of everything else through one formatter.

    descriptor: an open file's. May be called again. uvicorn has to be started with log_config=None, or it sets up its
    own.
    """
    handler = LogWriter(descriptor)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    # what basicConfig or an earlier call put there; not what others listen with
    for former in [one for one in root.handlers if type(one) in (logging.StreamHandler, LogWriter)]:
        root.removeHandler(former)
    root.addHandler(handler)
    for name in ("finetune", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("finetune").setLevel(logging.INFO)
    # its starting and stopping at level info is what the program says itself
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_what_ends_the_program


def _log_what_ends_the_program(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("finetune").critical("ended by a fault of its own", exc_info=(kind, error, trace))


def flush(longest_s: float = LONGEST_END_S) -> None:
    """Wait for lines that are still to be written, where they can be; those that nobody takes in time are lost."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogWriter):
            handler.flush_within(longest_s)
        else:
            handler.flush()


def _message(record: logging.LogRecord) -> str:
    try:
        # uvicorn ends some of its messages with a line end
        return record.getMessage().removesuffix("\n")
    except Exception:
        return f"{_shown(record.msg)} {_shown(record.args)}"


def _fields(record: logging.LogRecord) -> Fields:
    """Return what a record says beside its message, the request's id first."""
    given = getattr(record, "fields", None)
    fields: Fields = {} if (identity := request_id.get()) is None else {"request_id": identity}
    if isinstance(given, Mapping):
        fields |= {key if type(key) is str else _shown(key): value for key, value in given.items() if key not in fields}
    elif given is not None:
        fields["fields"] = given
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    raised = record.exc_info
    parts = [
        # an exception's own text may raise
        _safely(lambda: formatter.formatException(raised)) if raised and raised[0] else record.exc_text,
        record.stack_info,
    ]
    return "\n".join(part for part in parts if part)


def _json(value: object) -> str:
    try:
        return json.dumps(value, default=_shown, allow_nan=False)
    except Exception:
        return json.dumps(_shown(value))


def _word(value: Any) -> str:
    """Return a value as one word; quoted where it has blanks, = or quotes of its own."""
    text = _printable(value if isinstance(value, str) else _shown(value))
    return json.dumps(text, ensure_ascii=False) if not text or any(mark in text for mark in ' ="') else text


def _printable(text: str) -> str:
    """Escape all that is no printable character: line ends, a terminal's commands, marks that turn text around."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _shown(value: object) -> str:
    return _safely(lambda: str(value))


def _safely(text: Callable[[], str]) -> str:
    try:
        return text()
    except Exception as error:
        return f"<{type(error).__name__}>"

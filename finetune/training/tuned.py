"""What a run finds out for itself stays in its folder: the configuration stays as typed, and a resumed run does not
search again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from finetune.errors import FinetuneError
from finetune.files import write_json

Number = TypeVar("Number", int, float)


def found_once(path: Path, find: Callable[[], Number], kind: type[Number]) -> Number:
    """Return the number that stands in a file; where there is none, find it and write it there."""
    if not path.is_file():
        write_json(path, find())
    try:
        return kind(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise FinetuneError(f"{path} is damaged; delete it, and checkpoints/ beside it, to search again") from None

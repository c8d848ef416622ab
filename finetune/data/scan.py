"""Every file of a source looked at once; what was seen is kept, so that an unchanged file is not read again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import PIL
import platformdirs
import pyarrow
import pyarrow.parquet

from finetune.data.listing import Listed
from finetune.data.look import Facts, look
from finetune.errors import FinetuneError
from finetune.files import digest, replacing
from finetune.parallel import ordered_map, process_map
from finetune.progress import track
from finetune.stores import FolderStore, Store, StoredFile

log = logging.getLogger(__name__)

# Rises whenever `look` comes to see something else.
LOOK_VERSION = "3"
# A pool of processes is twice as fast as threads, but takes a second to start.
PROCESSES_FROM = 2000
# Photos that travel to another process at once.
TOGETHER = 64
# A file changed within this time before it was looked at may change again without a new mtime.
SETTLED_NS = 2_000_000_000

SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("size", pyarrow.int64()),
        ("mtime_ns", pyarrow.int64()),
        ("sha256", pyarrow.string()),
        ("problem", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("format", pyarrow.string()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("mode", pyarrow.string()),
        ("by_profile", pyarrow.bool_()),
        ("deep", pyarrow.bool_()),
        ("alpha", pyarrow.bool_()),
        ("animated", pyarrow.bool_()),
        ("orientation", pyarrow.int8()),
        ("dark", pyarrow.float64()),
        ("bright", pyarrow.float64()),
        ("entropy", pyarrow.float64()),
        ("sharpness", pyarrow.float64()),
        ("perceptual", pyarrow.uint64()),
    ]
)

Seen = dict[str, tuple[int, int, Facts]]


def scan(store: Store, photos: Sequence[Listed]) -> Iterator[Facts]:
    """Yield the facts of every photo in order; ended early, it keeps what it has seen."""
    kept = _kept_at(store)
    before = _load(kept)
    started_ns = time.time_ns()
    fresh: Seen = {}
    known = [_of_before(photo, before) for photo in photos]
    new = [photo for photo, facts in zip(photos, known, strict=True) if facts is None]
    looks = iter(track(_looks(store, new), "looking at photos", total=len(new)))
    try:
        for photo, facts in zip(photos, known, strict=True):
            if facts is not None:
                yield facts
                continue
            seen = next(looks)
            if seen.sha256 and photo.mtime_ns < started_ns - SETTLED_NS:
                fresh[photo.path] = (photo.size, photo.mtime_ns, seen)
            yield seen
    finally:
        if fresh:
            _save(kept, {**before, **fresh})


def look_at(store: Store, paths: Sequence[str]) -> list[Facts]:
    return look(StoredFile(store, path) for path in paths)


def _looks(store: Store, photos: Sequence[Listed]) -> Iterator[Facts]:
    paths = [photo.path for photo in photos]
    # other stores wait for a network or hold handles that another process cannot share
    apart = isinstance(store, FolderStore) and len(paths) >= PROCESSES_FROM
    spread, together = (process_map, TOGETHER) if apart else (ordered_map, 1)
    chunks = [paths[start : start + together] for start in range(0, len(paths), together)]
    return chain.from_iterable(spread(partial(look_at, store), chunks))


def _of_before(photo: Listed, before: Seen) -> Facts | None:
    if photo.problem:
        return Facts(problem=photo.problem, kind="unreadable")
    size, mtime_ns, facts = before.get(photo.path, (0, 0, None))
    return facts if photo.mtime_ns > 0 and (size, mtime_ns) == (photo.size, photo.mtime_ns) else None


def _kept_at(store: Store) -> Path:
    key = digest(store.address, LOOK_VERSION, PIL.__version__)
    return platformdirs.user_cache_path("finetune-service", appauthor=False) / "scans" / f"{key[:32]}.parquet"


def _load(path: Path) -> Seen:
    if not path.is_file():
        return {}
    try:
        table = pyarrow.parquet.read_table(path, schema=SCHEMA)
    except (OSError, pyarrow.ArrowException) as error:
        log.warning("%s cannot be used (%s); every photo is read again", path, str(error).splitlines()[0])
        return {}
    columns = [column.to_pylist() for column in table.columns]
    facts = map(Facts._make, zip(*columns[3:], strict=True))
    return dict(zip(columns[0], zip(columns[1], columns[2], facts, strict=True), strict=True))


def _save(path: Path, seen: Seen) -> None:
    rows = [(name, size, mtime_ns, *facts) for name, (size, mtime_ns, facts) in seen.items()]
    arrays = [
        pyarrow.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
    ]
    try:
        with replacing(path) as beside:
            pyarrow.parquet.write_table(pyarrow.table(arrays, schema=SCHEMA), beside)
    except (OSError, FinetuneError) as error:
        log.warning("what was seen of the photos is not kept for the next time: %s", error)

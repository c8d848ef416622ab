"""`audit.json` and `audit.html`: everything an audit found, for programs and for people."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from finetune.config import SourceConfig
from finetune.data.audit import SPLITS, Audit, as_json
from finetune.data.findings import KINDS, Case, Finding
from finetune.data.manifest import Manifest, Photo
from finetune.errors import ImageError
from finetune.files import write_json, write_text
from finetune.parallel import ordered_map
from finetune.preprocess import decode

# Of each kind and of each case, so that the page of a hundred thousand photos still opens.
MOST_CASES, MOST_PHOTOS = 12, 6
THUMBNAIL_PX = 112


def write_audit(result: Audit, config: SourceConfig, seed: int, folder: Path) -> Path:
    """Write both files into a folder; returns the page's path."""
    facts = as_json(result, config, seed)
    write_json(folder / "audit.json", facts)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("finetune.data").joinpath("audit.html.j2").read_text("utf-8"))
    by_path = {photo.path: photo for photo in result.manifest.photos}
    shown = [_section(result.manifest, by_path, finding) for finding in result.findings]
    write_text(folder / "audit.html", template.render(facts=facts, sections=shown, splits=SPLITS))
    return folder / "audit.html"


def _section(manifest: Manifest, by_path: dict[str, Photo], finding: Finding) -> dict[str, Any]:
    kind = KINDS[finding.kind]
    cases = finding.cases[:MOST_CASES]
    return {
        "kind": finding.kind,
        "severity": kind.severity,
        "title": kind.title,
        "advice": kind.advice,
        "count": len(finding.cases),
        "more": len(finding.cases) - len(cases),
        "cases": list(ordered_map(lambda case: _shown(manifest, by_path, case), cases)),
    }


def _shown(manifest: Manifest, by_path: dict[str, Photo], case: Case) -> dict[str, Any]:
    photos = [by_path[path] for path in case.paths[:MOST_PHOTOS]]
    thumbnails = [_thumbnail(manifest, photo) for photo in photos]
    return {
        "detail": case.detail,
        "photos": [{"path": photo.path, "thumbnail": small} for photo, small in zip(photos, thumbnails, strict=True)],
        "more": len(case.paths) - len(photos),
    }


def _thumbnail(manifest: Manifest, photo: Photo) -> str:
    """Return a data address of a small JPEG; empty where there is nothing to show, as of a damaged file."""
    if not photo.width:
        return ""  # the audit could not read it either, and a pipe would never answer
    try:
        (file,) = manifest.files([photo])
        image = decode(file, wanted_px=THUMBNAIL_PX)
    except (ImageError, OSError):
        return ""
    buffer = io.BytesIO()
    image.thumbnail((2 * THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

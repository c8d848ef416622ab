"""`finetune check`: what training would use, skip and refuse."""

from __future__ import annotations

from collections import Counter

from finetune.config import CheckConfig
from finetune.data.audit import SPLITS, Audit, audit
from finetune.data.audit_report import write_audit
from finetune.data.findings import KINDS
from finetune.errors import FinetuneError
from finetune.stores import readable


def main(config: CheckConfig) -> str:
    """Write audit.json and audit.html; return the tables of photos and of findings."""
    if config.augment.preview is not None and config.data.class_from == "none":
        raise FinetuneError("augment.preview= shows a photo of each class, and data.class_from=none gives no classes")
    result = audit(config.data, config.seed)
    page = write_audit(result, config.data, config.seed, config.output)
    fatal = result.of("untrainable")
    if fatal:
        raise FinetuneError("\n".join([*(case.detail for case in fatal), f"audit: {page}"]))
    lines = [*count_lines(result), "", *finding_lines(result), "", f"audit: {page}"]
    if config.augment.preview is not None:
        # imported only where it is asked for: it brings torch along
        from finetune.data.preview import write_preview

        lines.append(write_preview(config, result.manifest, config.augment.preview))
    return "\n".join(lines)


def count_lines(result: Audit) -> list[str]:
    """The table of photos by class and split."""
    manifest = result.manifest
    if manifest.classes == ("",):
        return [f"{len(manifest.photos) - len(manifest.skipped)} photos without labels"]
    counts = Counter((photo.label, photo.split) for photo in manifest.photos if not photo.problem)
    width = max(len("class"), *(len(label) for label in manifest.classes))
    rows = [f"{'class':<{width}}" + "".join(f"{split:>8}" for split in SPLITS)]
    rows += [
        f"{label:<{width}}" + "".join(f"{counts[label, split]:>8}" for split in SPLITS) for label in manifest.classes
    ]
    rows.append(f"{'all':<{width}}" + "".join(f"{len(manifest.of(split)):>8}" for split in SPLITS))
    grouped = [photo.group for photo in manifest.photos if photo.group and not photo.problem]
    if grouped:
        rows.append(f"{len(grouped)} of the photos belong to {len(set(grouped))} groups")
    return rows


def finding_lines(result: Audit, at_most: int = 3) -> list[str]:
    """Every finding in a line, with its first cases."""
    if not result.findings:
        return ["every file can be read, nothing was found"]
    width = max(len(KINDS[finding.kind].title) for finding in result.findings)
    lines = []
    for finding in result.findings:
        lines.append(f"{finding.severity:<8} {KINDS[finding.kind].title:<{width}} {len(finding.cases):>7}")
        for case in finding.cases[:at_most]:
            more = f" and {len(case.paths) - 3} more" if len(case.paths) > 3 else ""
            shown = ", ".join(map(readable, case.paths[:3])) + more
            lines.append(f"           {shown}: {case.detail}" if shown else f"           {case.detail}")
        if len(finding.cases) > at_most:
            lines.append(f"           and {len(finding.cases) - at_most} more")
    return lines

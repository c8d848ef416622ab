"""Does a bundle still answer as the trained model did, on this machine? Asked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import Bundle, beside_versions, open_bundle, versions_of
from finetune.errors import AddressError, FinetuneError, ParityError
from finetune.golden import FOLDER, GoldenPhoto, digest_file, digest_pixels, read_answers, read_photos
from finetune.parallel import ordered_map
from finetune.preprocess import Pixels, load_pixels
from finetune.progress import track
from finetune.runtime import Device
from finetune.serving.predictor import on_each_provider
from finetune.stores import File, StoredFile, TableStore, open_store

# By how much a probability of a file in reduced precision may differ from what that file answered at its export: such
# files round, and what another processor sums in another order may be rounded the other way.
REDUCED_LIMIT = 0.02

Probabilities = NDArray[np.float32]


def verify(path: Path, root: str | None, device: Device) -> str:
    """Compare with the answers that travel in the bundle; returns what was found.

    root: photos that were compared at export are known there by their content. Raises ParityError where an answer
    differs by more than the bundle allows.
    """
    bundle = open_bundle(path)
    golden = read_photos(bundle.folder)
    known = _known_photos(bundle, root) if root is not None else None
    if not golden and known is None:
        raise FinetuneError(
            f"{bundle.folder} was exported without golden photos; give data.root=, the photos it was exported with"
        )
    lines = [f"{bundle.folder}: {bundle.info.precision}, every file is as it was exported", *_beside(bundle)]
    failures: list[str] = []
    for predictor in on_each_provider(bundle, device):
        for what, files, wanted in _to_compare(bundle, golden, known):
            found = predictor.answer(files, f"asking on {predictor.session.provider}")
            line, failed = _judge(wanted, found, parity_limit(bundle) or REDUCED_LIMIT)
            lines.append(f"{what} on {predictor.session.provider}: {line}")
            failures += [lines[-1]] if failed else []
    lines.append(_decoding(bundle, golden))
    if failures:
        raise ParityError("the bundle answers otherwise here than it should:\n" + "\n".join(lines))
    return "\n".join(line for line in lines if line)


def _beside(bundle: Bundle) -> list[str]:
    """Say which of the files that Triton reads beside the newest version are not its own."""
    home = bundle.folder.parent
    if bundle.version != str(max(versions_of(home), default=0)):
        return []
    wrong = [
        name
        for name, text in beside_versions(bundle.info.model).items()
        if not (home / name).is_file() or (home / name).read_bytes() != text.encode()
    ]
    return [f"{home / name} is not as it was exported: Triton reads it; exporting again mends it" for name in wrong]


def parity_limit(bundle: Bundle) -> float | None:
    """Return by how much a probability may differ from the trained model's; None for a file that was reduced."""
    return next((parity.limit for parity in bundle.info.parity), None)


Compared = tuple[str, Sequence[Path | StoredFile], Probabilities]


def _to_compare(bundle: Bundle, golden: list[GoldenPhoto], known: Compared | None) -> list[Compared]:
    files = [bundle.folder / FOLDER / photo.file for photo in golden]
    own = ("golden photos", files, np.array([photo.probabilities for photo in golden], np.float32))
    return ([own] if golden else []) + ([known] if known is not None else [])


def _known_photos(bundle: Bundle, root: str) -> Compared:
    """Return those photos under `root` whose answers travel in the bundle."""
    answers = read_answers(bundle.folder)
    if answers is None:
        raise FinetuneError(f"{bundle.folder} has no table of answers to photos; export it again with this program")
    try:
        store = open_store(root)
        if isinstance(store, TableStore):
            raise AddressError(f"{root} is a table; give the folder or archive of the photos")
        files = [
            StoredFile(store, found.path) for found in store.walk() if isinstance(found, File) and not found.refusal
        ]
    except AddressError as error:
        raise FinetuneError(f"data.root={error}") from None
    digests = list(track(ordered_map(digest_file, files), "looking for known photos", total=len(files)))
    known = answers.of(digests)
    if not known:
        raise FinetuneError(
            f"data.root={root}: none of its {len(files)} files is a photo that {bundle.folder} was compared on"
        )
    what = f"{len(known)} of the {len(files)} files in {root}, which are known,"
    return what, [files[place] for place in known], np.stack(list(known.values()))


def _judge(wanted: Probabilities, found: Probabilities, limit: float) -> tuple[str, bool]:
    gaps = np.abs(wanted - found).max(axis=1)
    same = int((wanted.argmax(1) == found.argmax(1)).sum())
    failed = not gaps.max() <= limit  # not `>`: a NaN is a failure too
    verdict = f"more than {limit:.2g}, NOT as exported" if failed else f"limit {limit:.2g}"
    differences = f"largest difference {gaps.max():.2g} ({verdict}), mean {gaps.mean():.1g}"
    return f"{differences}, same answer on {same} of {len(found)}", failed


def _decoding(bundle: Bundle, golden: list[GoldenPhoto]) -> str:
    """Say whether this machine decodes and resizes the golden photos to the very pixels that they were."""
    if not golden:
        return ""
    files = [bundle.folder / FOLDER / photo.file for photo in golden]
    pixels: list[Pixels] = [load_pixels(file, bundle.info.model.preprocessing) for file in files]
    same = sum(digest_pixels(found) == photo.pixels_sha256 for found, photo in zip(pixels, golden, strict=True))
    there = f"decoded to the same pixels: {same} of {len(golden)}"
    return there if same == len(golden) else f"{there}; another Pillow than {bundle.info.model.versions.get('pillow')}?"

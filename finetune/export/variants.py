"""Precisions of one exported graph side by side: how fast each is here, what it costs, and which to publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from statistics import median

import numpy as np
import onnx
from numpy.typing import NDArray

from finetune.bundle import INPUT
from finetune.errors import FinetuneError, nearest
from finetune.preprocess import Pixels
from finetune.runtime import Device, Session, open_session

# One photo as it comes, and a batch of a busy server.
BATCH_SIZES = (1, 8)
# Of all variants in turn, so that what else the machine does troubles all alike; the first only warms up.
ROUNDS = 11
# A smaller gain in speed is noise.
WORTH = 1.05
FP32 = "fp32"

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """Over `photos`. accuracy and agreement, with the answers of fp32, are fractions of 1; no number is never right.

    largest_difference: of one probability from fp32's; unanswered: how many photos have a probability that is no
    number.
    """

    photos: int
    accuracy: float
    agreement: float
    largest_difference: float
    unanswered: int = 0


@dataclass(frozen=True)
class Variant:
    """One precision. photos_a_second: by batch size; score and it are None where the graph does not run here.

    passes: whether it runs and holds the limit of lost accuracy; reason: why not, or an empty string.
    """

    name: str
    proto: onnx.ModelProto
    photos_a_second: Mapping[int, float] | None
    score: Score | None
    passes: bool
    reason: str

    @property
    def megabytes(self) -> float:
        size: int = self.proto.ByteSize()
        return size / 1e6

    @property
    def seconds_a_photo(self) -> float:
        """The mean over batch sizes; infinite where it does not run."""
        speeds = self.photos_a_second
        return sum(1 / speed for speed in speeds.values()) / len(speeds) if speeds else float("inf")


class Gate:
    """Judges graphs by what they lose of fp32's accuracy on photos that the network has not learned.

    Each graph is run over the photos once: what a search has judged is not run again for the table.
    """

    def __init__(
        self,
        fp32: onnx.ModelProto,
        photos: Callable[[], Iterable[Pixels]],
        targets: Sequence[int],
        device: Device,
        max_accuracy_loss: float = 0.005,
    ) -> None:
        """photos: begins a pass, in batches (N, H, W, 3) uint8; targets: a class number a photo.

        max_accuracy_loss: fraction of 1.
        """
        self.photos, self.targets = photos, np.asarray(targets)
        self.device, self.max_accuracy_loss = device, max_accuracy_loss
        self.fp32 = fp32
        self._scores: dict[bytes, Score] = {}

    def accepts(self, proto: onnx.ModelProto) -> bool:
        return self.refusal(self.score(proto)) == ""

    def refusal(self, score: Score) -> str:
        """Say by how much the accuracy lost exceeds the limit, or what has no answer; an empty string if it passes."""
        if score.unanswered:
            return f"answers {score.unanswered} of {score.photos} photos with no number"
        exact = self.score(self.fp32).accuracy
        lost = exact - score.accuracy
        # in photos, as fractions of floats are not exact
        if round(lost * len(self.targets)) <= self.max_accuracy_loss * len(self.targets) + 1e-9:
            return ""
        return (
            f"loses {100 * lost:.1f} points of accuracy ({100 * exact:.1f} to "
            f"{100 * score.accuracy:.1f} %), more than max_accuracy_loss={self.max_accuracy_loss:g}"
        )

    def score(self, proto: onnx.ModelProto) -> Score:
        """Run the photos through a graph, once; raises what onnxruntime raises where it cannot run here."""
        raw = proto.SerializeToString(deterministic=True)
        key = sha256(raw).digest()
        if key not in self._scores:
            self._scores[key] = self._compare(self._exact if proto is self.fp32 else self._run(raw))
        return self._scores[key]

    def _compare(self, probabilities: Probabilities) -> Score:
        answered = np.isfinite(probabilities).all(1)
        answers = probabilities.argmax(1)
        return Score(
            photos=len(answers),
            accuracy=float((answered & (answers == self.targets)).mean()),
            agreement=float((answered & (answers == self._exact.argmax(1))).mean()),
            largest_difference=float(np.abs(probabilities - self._exact).max()),
            unanswered=int((~answered).sum()),
        )

    @cached_property
    def _exact(self) -> Probabilities:
        return self._run(self.fp32.SerializeToString(deterministic=True))

    def _run(self, model: bytes) -> Probabilities:
        session = open_session(model, self.device)
        return np.concatenate([session.ort.run(None, {INPUT: batch})[0] for batch in self.photos()])


def measure(graphs: Mapping[str, onnx.ModelProto], gate: Gate) -> tuple[Variant, ...]:
    """Judge and time the graphs, fp32 and others, by name; one that does not run on the device says why."""
    sessions: dict[str, Session] = {}
    reasons: dict[str, str] = {}
    for name, proto in graphs.items():
        try:
            sessions[name] = open_session(proto.SerializeToString(), gate.device)
        except Exception as error:  # onnxruntime raises its own types, by what is missing
            reasons[name] = f"does not run on this device: {str(error).strip().splitlines()[0]}"
    speeds = _time_in_turns(sessions, next(iter(gate.photos())))
    return tuple(
        _judged(name, proto, speeds[name], gate)
        if name in sessions
        else Variant(name, proto, None, None, passes=False, reason=reasons[name])
        for name, proto in graphs.items()
    )


def _judged(name: str, proto: onnx.ModelProto, speeds: Mapping[int, float], gate: Gate) -> Variant:
    score = gate.score(proto)
    reason = gate.refusal(score)
    return Variant(name, proto, speeds, score, passes=not reason, reason=reason)


def _time_in_turns(sessions: Mapping[str, Session], photos: Pixels) -> dict[str, dict[int, float]]:
    """Return photos a second by name and batch size, medians of ROUNDS."""
    seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in sessions for size in BATCH_SIZES}
    for _ in range(ROUNDS):
        for (name, size), times in seconds.items():
            batch = np.resize(photos, (size, *photos.shape[1:]))
            began = time.perf_counter()
            sessions[name].ort.run(None, {INPUT: batch})
            times.append(time.perf_counter() - began)
    return {name: {size: size / median(seconds[name, size][1:]) for size in BATCH_SIZES} for name in sessions}


def choose(variants: Sequence[Variant], precision: str) -> tuple[Variant, str]:
    """Return the variant to publish, and why: the one asked for if it passes, else fp32; for "auto" the fastest.

    Raises FinetuneError for a precision that is none of the variants.
    """
    by_name = {variant.name: variant for variant in variants}
    exact = by_name[FP32]
    if precision == "auto":
        fastest = min((v for v in variants if v.passes), key=lambda variant: variant.seconds_a_photo)
        gain = exact.seconds_a_photo / fastest.seconds_a_photo
        if gain < WORTH:
            return exact, f"{FP32}: no other that passes is faster by {100 * (WORTH - 1):.0f} % or more"
        return fastest, f"{fastest.name}: the fastest that passes, {gain:.2f} times as fast as {FP32}"
    if precision not in by_name:
        known = [*by_name, "auto"]
        raise FinetuneError(f"precision={precision} is none of {', '.join(known)}{nearest(precision, known)}")
    asked = by_name[precision]
    if not asked.passes:
        return exact, f"{precision} {asked.reason}; {FP32} is kept"
    return asked, f"{precision}: as asked"

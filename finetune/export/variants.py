"""Precisions of one exported graph side by side: how fast each is here, what it costs, and which to publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import onnx
from numpy.typing import NDArray

from finetune.bundle import INPUT
from finetune.errors import FinetuneError, nearest
from finetune.export.timing import Speed, time_in_turns
from finetune.preprocess import Pixels
from finetune.runtime import Device, Session, open_session

# A smaller gain in speed is not worth another file.
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
    """One precision. speed and score are None where the graph does not run here.

    passes: whether it runs and holds the limit of lost accuracy; reason: why not, or an empty string.
    """

    name: str
    proto: onnx.ModelProto
    speed: Speed | None
    score: Score | None
    passes: bool
    reason: str

    @property
    def megabytes(self) -> float:
        size: int = self.proto.ByteSize()
        return size / 1e6


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
    speeds = time_in_turns(sessions, next(iter(gate.photos())))
    return tuple(
        _judged(name, proto, speeds[name], gate)
        if name in sessions
        else Variant(name, proto, None, None, passes=False, reason=reasons[name])
        for name, proto in graphs.items()
    )


def _judged(name: str, proto: onnx.ModelProto, speed: Speed, gate: Gate) -> Variant:
    score = gate.score(proto)
    reason = gate.refusal(score)
    return Variant(name, proto, speed, score, passes=not reason, reason=reason)


def choose(variants: Sequence[Variant], precision: str) -> tuple[Variant, str]:
    """Return the variant to publish, and why: the one asked for if it passes, else fp32; for "auto" the fastest.

    "auto" wants a gain that is no noise: WORTH in three of four rounds. Why a variant does not pass stands in it.

    Raises FinetuneError for a precision that is none of the variants.
    """
    by_name = {variant.name: variant for variant in variants}
    exact = by_name[FP32]
    if precision == "auto":
        return _fastest(variants, exact)
    if precision not in by_name:
        known = [*by_name, "auto"]
        raise FinetuneError(f"precision={precision} is none of {', '.join(known)}{nearest(precision, known)}")
    asked = by_name[precision]
    if not asked.passes:
        return exact, f"{precision} is not published; {FP32} is kept"
    return asked, f"{precision}: as asked"


def _fastest(variants: Sequence[Variant], exact: Variant) -> tuple[Variant, str]:
    speeds = {v.name: v.speed for v in variants if v.passes and v.speed}
    faster = {name: speed for name, speed in speeds.items() if speed.usual_gains[0] > WORTH}
    if not faster:
        return exact, f"{FP32}: no other that passes is faster by {100 * (WORTH - 1):.0f} % in three of four rounds"
    name = max(faster, key=lambda name: faster[name].gain)
    fastest = next(variant for variant in variants if variant.name == name)
    low, high = faster[name].usual_gains
    gain = f"{faster[name].gain:.2f} times as fast as {FP32} ({low:.2f} to {high:.2f})"
    return fastest, f"{name}: the fastest that passes, {gain}"

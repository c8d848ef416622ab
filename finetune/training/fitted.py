"""What every way of training hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.data.manifest import Photo
from finetune.models.backbone import BackboneSpec
from finetune.models.classifier import Classifier
from finetune.preprocess import Preprocessing
from finetune.training.imbalance import Handling, Judgement

# One line of metrics.csv: what was tried or which epoch, and how it did.
Metrics = dict[str, float | int | str]


@dataclass(frozen=True)
class Fitted:
    """A trained and calibrated classifier.

    freeze: how deep it was trained; judged: on the validation photos, before any refit with them; weights_from: origin
    of the pretrained weights; val_logits: (N, classes) of the validation photos, before the temperature and by layers
    that have not learned from them; photos_seen: how many were learned from, those whose features were kept among them;
    score: logits (N, classes) of photos, by the cheapest faithful way; earlier_s: seconds of processes before this one;
    soup_epochs: which epochs were averaged, from 1; left_out: training photos for which there was no time.
    """

    freeze: str
    handling: Handling
    spec: BackboneSpec
    classifier: Classifier
    preprocessing: Preprocessing
    weights_from: str
    judged: Judgement
    val_logits: Tensor
    trainable_parameters: int
    photos_seen: int
    metrics: list[Metrics]
    score: Callable[[Sequence[Photo]], Tensor]
    earlier_s: float = 0.0
    soup_epochs: tuple[int, ...] = ()
    left_out: int = 0

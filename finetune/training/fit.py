"""The ways to train: the head, layers, or first the head and then, where it pays, layers from there.

Fine-tuning from a head that knows nothing tears down what was pretrained; from a fitted one it does not (Kumar et al.
2022, LP-FT).
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch

from finetune.config import FreezeConfig, TrainConfig
from finetune.data.manifest import Manifest
from finetune.errors import FinetuneError
from finetune.models.allocator import keep_freed_memory
from finetune.models.backbone import BackboneSpec
from finetune.models.freezing import Depth
from finetune.run import Run
from finetune.training.attempts import Search
from finetune.training.choice import keep_choice, narrowed
from finetune.training.colours import colour_pca
from finetune.training.deadline import Clock, Deadline
from finetune.training.fitted import Fitted
from finetune.training.head_only import fit_head, probed_start, save_checkpoints
from finetune.training.imbalance import Handling, choose_handling
from finetune.training.layers import fit_layers
from finetune.training.processes import Processes
from finetune.training.search import RESERVE_S, Found, lead, search_heads
from finetune.training.settling import require_used, settle_image_size
from finetune.training.start import Start, fresh_start
from finetune.training.timing import seconds_a_training_photo
from finetune.training.watching import Watch

log = logging.getLogger(__name__)

# Standard errors by which layers have to be ahead of the head: the best of many epochs on the same validation photos
# flatters itself, the more the fewer they are, and the head was chosen on others too.
CERTAIN = 2.0
# Of a training step: scoring needs no backward pass.
SCORING_SHARE = 1 / 3
# Of the configured learning rate: a head that already answers needs small steps.
SHARE_FROM_HEAD = 1 / 3


def fit(
    config: TrainConfig,
    spec: BackboneSpec,
    manifest: Manifest,
    run: Run,
    processes: Processes,
    deadline: Deadline,
    watch: Watch,
) -> Fitted:
    """Train as configured; with freeze=auto the better of head and layers on the validation photos."""
    mode, depth = config.freeze.mode, depth_for(config.freeze, len(manifest.of("train")), deadline)
    log.info("%d training photos: %s", len(manifest.of("train")), _in_words(config.freeze, depth, deadline))
    require_used(config, depth)
    config = settle_image_size(config, manifest)
    if mode in ("partial", "full", "gradual"):
        start = fresh_start(config, spec, manifest)
        clock = None
        if deadline.is_set:
            clock, lack = _clock(deadline, start, manifest, processes.device, config.trainer.soup)
            if lack:
                raise FinetuneError(f"budget_minutes={config.budget_minutes:g} is too short for layers: {lack}")
        handling = _handling(config, depth, manifest)
        _tell(handling)
        return fit_layers(config, depth, handling, start, manifest, run, processes, watch, clock)
    components = colour_pca(config.augment, manifest, run) if config.probe.views else None
    handling = _handling(config, "head", manifest)
    _tell(handling)
    config, rows = narrowed(config, run)
    found = search_heads(Search(config, handling, manifest, processes.device, deadline, watch, components, rows))
    head = fit_head(found)
    layers = _fit_further(found, head, depth, run, processes)
    if layers is None:
        save_checkpoints(found, head.classifier, run, "best.ckpt", "last.ckpt")
        return head
    layers = replace(layers, photos_seen=head.photos_seen + layers.photos_seen)
    if mode == "lp_ft" or ahead(layers, head, manifest.targets(manifest.of("val"))) > CERTAIN:
        return layers
    log.info("that is less than %g standard errors better: the head alone is kept", CERTAIN)
    save_checkpoints(found, head.classifier, run, "best.ckpt")
    return replace(head, metrics=layers.metrics, photos_seen=layers.photos_seen, earlier_s=layers.earlier_s)


def depth_for(freeze: FreezeConfig, training_photos: int, deadline: Deadline) -> Depth:
    """Return how deep to train: with freeze=auto a little data the head only, more the top, very much everything.

    With a time limit everything, for as long as there is time: validation decides whether that paid.
    """
    if freeze.mode != "auto" and freeze.mode != "lp_ft":
        return freeze.mode
    if freeze.mode == "lp_ft" or deadline.is_set or training_photos >= freeze.full_from:
        return "full"
    return "head" if training_photos < freeze.head_below else "partial"


def _in_words(freeze: FreezeConfig, depth: Depth, deadline: Deadline) -> str:
    if freeze.mode != "auto" or depth == "head":
        return f"freeze={depth if freeze.mode == 'auto' else freeze.mode}"
    layers = "all layers" if depth == "full" else "the top layers"
    then = "if there is time for that, and " if deadline.is_set else ""
    return f"freeze=auto: the head, then {layers} {then}if they are better"


def ahead(layers: Fitted, head: Fitted, targets: list[int]) -> float:
    """Return by how many standard errors layers do better than the head on the validation photos."""
    wanted = torch.tensor(targets)
    layers_right, head_right = (each.val_logits.argmax(1) == wanted for each in (layers, head))
    return lead(layers_right, head_right, head.handling.photo_weights(wanted))


def _fit_further(found: Found, head: Fitted, depth: Depth, run: Run, processes: Processes) -> Fitted | None:
    """Train layers from the head on, where the data and the time allow it; None where they do not."""
    search = found.attempt.search
    config, manifest = search.config, search.manifest
    if depth == "head":
        return None
    if search.left_out:
        log.info("not fine-tuned: there was no time to learn from all photos even for the head")
        return None
    if config.freeze.mode == "auto" and head.judged.accuracy == 1:
        log.info("every validation photo is right: nothing is fine-tuned")
        return None
    start = probed_start(found)
    clock = None
    if search.deadline.is_set:
        clock, lack = _clock(search.deadline, start, manifest, search.device, config.trainer.soup)
        if lack:
            log.info("not fine-tuned: %s", lack)
            return None
    # the best so far is on disk, whatever happens from here on
    run.save_weights(head.classifier)
    keep_choice(found, run)
    if config.freeze.mode == "auto" and isinstance(config.optimizer.learning_rate, float):
        smaller = {"learning_rate": SHARE_FROM_HEAD * config.optimizer.learning_rate}
        config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=smaller)})
    handling = _handling(config, depth, manifest)
    if handling != search.handling:
        _tell(handling)
    try:
        layers = fit_layers(config, depth, handling, start, manifest, run, processes, search.watch, clock)
    except FinetuneError as error:
        if config.freeze.mode != "auto":
            raise
        log.warning("fine-tuning from the head failed, the head alone is kept: %s", error)
        return None
    log.info(
        "fine-tuned from the head: validation accuracy %.1f %% (loss %.3f), before %.1f %% (%.3f)",
        *(100 * layers.judged.accuracy, layers.judged.loss),
        *(100 * head.judged.accuracy, head.judged.loss),
    )
    return replace(layers, freeze="lp_ft")


def _clock(deadline: Deadline, start: Start, manifest: Manifest, device: torch.device, soup: int) -> tuple[Clock, str]:
    """Return the time there is for training layers, and what is lacking where that is less than an epoch takes.

    soup: how many epochs are averaged in turn, each of them judged.
    """
    train, val, test = (len(manifest.of(split)) for split in ("train", "val", "test"))
    keep_freed_memory()
    step_s = seconds_a_training_photo(start.classifier, start.preprocessing.image_size, device)
    score_s = SCORING_SHARE * step_s
    epoch_s, after_s = step_s * train + score_s * val, score_s * (val * (1 + soup) + test) + RESERVE_S
    began, ends = time.monotonic(), deadline.at - after_s
    lack = ""
    if epoch_s > ends - began:
        lack = f"an epoch would take about {epoch_s:.0f} s, and {max(0.0, ends - began):.0f} s are left for it"
    return Clock(began, ends), lack


def _handling(config: TrainConfig, depth: Depth, manifest: Manifest) -> Handling:
    return choose_handling(config.imbalance, depth, [photo.label for photo in manifest.of("train")])


def _tell(handling: Handling) -> None:
    log.info("imbalance: %s (%s)", handling.method, handling.reason)

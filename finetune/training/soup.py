"""Greedy soup: the mean of the weights of several good epochs (Wortsman et al. 2022, recipe 1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.training.imbalance import Judgement

log = logging.getLogger(__name__)

State = dict[str, Tensor]


def stir(classifier: Classifier, ingredients: list[Path], judge: Callable[[], Judgement]) -> tuple[int, ...]:
    """Leave in the classifier the mean of the best epoch and of all that do not make it worse; return their numbers,
    counted from 1.

    ingredients: checkpoints, the best first; judge: of the classifier as it is, on the validation photos. An epoch is
    added if neither the loss rises nor the accuracy falls, so that the soup is never worse than the best epoch. The
    statistics of batch norms are averaged like the weights: epochs of one run lie close together, and what is judged
    is then what is kept, without another pass over the training photos.
    """
    (number, soup), *others = _opened(ingredients)
    classifier.load_state_dict(soup)
    held, epochs = judge(), [number]
    for number, state in others:
        mixed = {name: _mean(soup[name], state[name], len(epochs)) for name in soup}
        classifier.load_state_dict(mixed)
        judged = judge()
        if judged.loss <= held.loss and judged.rank[0] >= held.rank[0]:
            soup, held = mixed, judged
            epochs.append(number)
    classifier.load_state_dict(soup)
    chosen = ", ".join(map(str, epochs))
    log.info("soup of epochs %s, out of the %d best: validation loss %.4f", chosen, len(ingredients), held.loss)
    return tuple(epochs)


def _opened(ingredients: list[Path]) -> Iterator[tuple[int, State]]:
    for path in ingredients:
        if not path.is_file():
            raise FinetuneError(f"the checkpoint {path} of a good epoch is gone; delete its run folder to start over")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("classifier."): tensor for name, tensor in checkpoint["state_dict"].items()}
        # Lightning counts from 0
        yield int(checkpoint["epoch"]) + 1, state


def _mean(soup: Tensor, other: Tensor, in_soup: int) -> Tensor:
    # a count of batches has no mean; between two equal numbers lerp gives that number, bit for bit
    return soup.lerp(other, 1 / (in_soup + 1)) if soup.is_floating_point() else soup

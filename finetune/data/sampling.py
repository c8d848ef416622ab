"""The order in which training photos are drawn: a function of seed and epoch alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Sampling = Literal["shuffled", "balanced"]
# epoch, number of the photo, how often it was drawn before in this epoch
Place = tuple[int, int, int]


class EpochShuffle(Sampler[Place]):
    """Every photo once, in a new order each epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0
        self.resumed_epoch, self.taken = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def resume(self, epoch: int, taken: int) -> None:
        """Go on inside an epoch, of which some places were taken before; the epochs after it are whole."""
        self.epoch = self.resumed_epoch = epoch
        self.taken = taken

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Place]:
        places = self.places(self.epoch)
        return iter(places[self.taken :] if self.epoch == self.resumed_epoch else places)

    def places(self, epoch: int) -> list[Place]:
        """Return the whole order of an epoch."""
        drawn: Counter[int] = Counter()
        places = []
        for number in self._order(np.random.default_rng((self.seed, epoch))).tolist():
            places.append((epoch, number, drawn[number]))
            drawn[number] += 1
        return places

    def _order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        return generator.permutation(self.length)


class BalancedShuffle(EpochShuffle):
    """Every class equally often, about as many photos an epoch as there are.

    Within a class no photo is drawn again before all others were: a common class shows other photos each epoch, a rare
    one repeats its own evenly.
    """

    def __init__(self, targets: Sequence[int], seed: int) -> None:
        """targets: each photo's class number."""
        members = defaultdict(list)
        for number, target in enumerate(targets):
            members[target].append(number)
        self.members = [np.array(members[target]) for target in sorted(members)]
        self.per_class = -(-len(targets) // len(self.members))
        super().__init__(self.per_class * len(self.members), seed)

    def _order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        return generator.permutation(np.concatenate([self._draw(members, generator) for members in self.members]))

    def _draw(self, members: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        rounds = -(-self.per_class // len(members))
        return np.concatenate([generator.permutation(members) for _ in range(rounds)])[: self.per_class]

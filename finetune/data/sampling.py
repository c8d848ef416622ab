"""The order in which training photos are drawn: a function of seed and epoch alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from finetune.errors import FinetuneError

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


class Share(NamedTuple):
    """The part of every batch that one of several processes takes: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def of(self, photos: int) -> list[int]:
        """Return the places of a batch that are this process's, in order.

        They are dealt out in the pairs that `BatchMixing` blends, first with last and so on, so that a process finds
        the partners of its photos among its own; in an odd batch the second is also the first one's.
        """
        odd = photos % 2
        pairs = [{place, photos - 1 + odd - place} for place in range(odd, (photos + odd) // 2)]
        if odd:
            pairs = [{0}.union(*pairs[:1]), *pairs[1:]]
        return sorted(set[int]().union(*pairs[self.rank :: self.size]))

    def all_of(self, photos: int) -> list[int]:
        """Return which photos of a whole split are this process's: every `size`-th, and as many for all of them.

        Where they do not come out even, the first ones come again at the end.
        """
        return [(self.rank + number) % photos for number in range(0, photos, self.size)]


class SharedBatches(Sampler[list[Place]]):
    """Batches of a sampler's photos, of each of which a process takes its share.

    A last batch that has not two photos for every process is left out: batch norm would have no variance to work with.
    """

    def __init__(self, sampler: EpochShuffle, batch_size: int, share: Share) -> None:
        """batch_size: photos of all processes together."""
        least = 2 * share.size
        if batch_size < least and share.size > 1:
            raise FinetuneError(
                f"data.batch_size={batch_size} is less than 2 photos for each of {share.size} processes; give more, or "
                "use fewer processes: as many as the run began with, where data.batch_size=auto found it"
            )
        if share.size > 1 and len(sampler) < least:
            raise FinetuneError(f"{len(sampler)} training photos are too few for {share.size} processes; use fewer")
        self.sampler, self.batch_size, self.share = sampler, batch_size, share
        rest = len(sampler) % batch_size
        self.left_out = rest if 0 < rest < least and len(sampler) > batch_size else 0

    def photos(self, number: int) -> int:
        """Return how many photos batch `number` of an epoch, from 0, has in all processes."""
        return min(self.batch_size, len(self.sampler) - number * self.batch_size)

    def __len__(self) -> int:
        return ceil((len(self.sampler) - self.left_out) / self.batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        places = list(self.sampler)
        places = places[: len(places) - self.left_out]
        for first in range(0, len(places), self.batch_size):
            batch = places[first : first + self.batch_size]
            yield [batch[place] for place in self.share.of(len(batch))]

"""A line in which clients take turns, however many things each of them waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Gives out one item of each who waits, then the next of each, each one's in the order in which they came."""

    def __init__(self, is_gone: Callable[[Item], bool]) -> None:
        """is_gone: of what nobody waits for any more; it takes nobody's turn, and is never given out."""
        self._is_gone = is_gone
        self._own: deque[Item] = deque()
        # whose turn is next stands first
        self._lines: dict[object, Line[Item]] = {}

    def __len__(self) -> int:
        return len(self._own) + sum(map(len, self._lines.values()))

    def put(self, item: Item, *whose: object) -> None:
        """whose: who takes turns with whom: a client with others, then a model with the others of that client."""
        if whose:
            self._lines.setdefault(whose[0], Line(self._is_gone)).put(item, *whose[1:])
        else:
            self._own.append(item)

    def take(self) -> Item | None:
        """Return what is next; None where nobody waits."""
        while self._own:
            item = self._own.popleft()
            if not self._is_gone(item):
                return item
        while self._lines:
            who = next(iter(self._lines))
            line = self._lines.pop(who)
            found = line.take()
            if line:
                # behind all others
                self._lines[who] = line
            if found is not None:
                return found
        return None

    def firsts(self) -> Iterator[Item]:
        """Yield, for each who waits, what came first."""
        if self._own:
            yield self._own[0]
        for line in self._lines.values():
            yield from line.firsts()

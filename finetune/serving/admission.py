"""How many photos a model may have in hand: what would wait for longer than a client listens is refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from finetune.serving.clients import Places
from finetune.serving.refusal import Refusal

# Who asks, as `name_client` has it, set for each request. Behind a proxy without keys all are one.
client: ContextVar[str] = ContextVar("client", default="")
# Share of the newest measurement in the running mean of a photo's seconds.
NEWEST = 0.2


class Admission:
    """Counts the photos that are decoded, wait or run, and how fast they leave; used from one event loop.

    The time that one more photo would wait is the number of those before it times the seconds between two photos that
    leave (Little's law), decoding included; so the queue is short on a slow machine and long on a fast one.

    Clients take turns: before a client's next photo come, of each other client, as many as it has in hand itself, and
    one. A client alone waits for all that are in hand.
    """

    def __init__(self, max_queue: int, max_wait_s: float, together: int) -> None:
        """max_queue: photos in hand at most; max_wait_s: expected seconds of waiting at most.

        together: how many run at one time, and may leave so.
        """
        self.max_wait_s, self.together = max_wait_s, together
        self._places = Places(max_queue)
        self.seconds_per_photo = 0.0
        self._since = 0.0

    @property
    def photos(self) -> int:
        """Those in hand."""
        return self._places.taken

    @property
    def expected_wait_s(self) -> float:
        """What one more photo of this client would wait for; at least as long a photo as those take that have not left.

        That tells of photos that take far longer than those before them, while they still do.
        """
        if not self.photos:
            return 0.0
        unfinished_s = (time.perf_counter() - self._since) / self.together
        own = self._places.of[client.get()]
        before = own + sum(min(held, own + 1) for who, held in self._places.of.items() if who != client.get())
        return before * max(self.seconds_per_photo, unfinished_s)

    @contextmanager
    def admit(self, photos: int) -> Iterator[Callable[[], None]]:
        """Hold a place for each photo of a request; yields what gives one of them back, the rest end with the block.

        Raises Refusal 503 where they would not be answered in time. A model with nothing in hand takes any request.
        """
        wait_s, who = self.expected_wait_s, client.get()
        if self.photos and (wait_s > self.max_wait_s or not self._places.has_room(who, photos)):
            raise Refusal(503, f"{self.photos} photos are waiting; come back later", retry_after_s=wait_s)
        if not self.photos:
            self._since = time.perf_counter()
        held = 0

        def hold(more: int) -> None:
            nonlocal held
            held += more
            self._places.hold(who, more)

        hold(photos)
        try:
            yield lambda: hold(-1)
        finally:
            hold(-held)

    def measure(self, photos: int) -> None:
        """Note that so many photos were answered, or found to be none, together, just now."""
        now = time.perf_counter()
        measured = (now - self._since) / photos
        self._since = now
        weight = NEWEST if self.seconds_per_photo else 1.0
        self.seconds_per_photo += weight * (measured - self.seconds_per_photo)

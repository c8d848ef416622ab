"""The calls over gRPC that run: no more than there is memory for, and none that is lost when the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from finetune.serving.clients import Places
from finetune.serving.refusal import Refusal

# Where Linux and macOS list what a process has open. Windows has nothing like it: there gRPC's own end of a server
# tells calls that it never began CANCELLED.
OPEN_FILES = Path("/dev/fd")
Message = TypeVar("Message")


@dataclass(eq=False)
class Place:
    """One call's; lost where another client needed it more."""

    who: str
    lost: bool = False


class Calls:
    """Counts calls from their beginning until their answer is sent; used from one event loop.

    gRPC does not tell how much of a message has come, so that a call without one holds memory too, and a place; but it
    loses it to whoever would find none and has fewer.
    """

    def __init__(self, most: int, per_client: int | None = None) -> None:
        """per_client: of one client, if there is a limit."""
        self._places, self._per_client = Places(most), per_client
        # whose message has not come, and what ends the wait for it; who has waited for longest stands first
        self._silent: dict[Place, asyncio.Timeout] = {}
        self._running, self._ending = 0, False
        # whether those that run are no longer waited for
        self.ended = False
        self._none_runs = asyncio.Event()
        self._none_runs.set()

    def begin(self, who: str, context: Any) -> Place:
        """Give a client's call a place until gRPC is through with it; raises Refusal 429 where there is none.

        Raises Refusal 503 once all end.
        """
        if self._ending:
            raise Refusal(503, "this server is about to end")
        if self._per_client is not None and self._places.of[who] >= self._per_client:
            raise Refusal(429, f"this client has {self._per_client} calls open already")
        if not self._places.has_room(who, 1) and not self._silence_one(who):
            held = f"{self._places.taken} calls run already, {self._places.of[who]} of this client"
            raise Refusal(429, f"{held}; come back later")
        place = Place(who)
        self._places.hold(who, 1)
        self._running += 1
        self._none_runs.clear()
        context.add_done_callback(lambda _: self._end(place))
        return place

    async def hear(self, place: Place, reading: Awaitable[Message], limit_s: float) -> Message:
        """Return a call's message; raises Refusal 408 where it does not come in time, 429 where the place is lost."""
        try:
            async with asyncio.timeout(limit_s) as wait:
                self._silent[place] = wait
                message = await reading
        except TimeoutError:
            if not place.lost:
                raise Refusal(408, f"the message did not come within {limit_s:g} s") from None
        finally:
            self._silent.pop(place, None)
        if place.lost:
            raise Refusal(429, "no message came before another client needed the place; come back later")
        return message

    async def finish(self, grace_s: float) -> None:
        """Let no more begin, and wait for those that run, no longer than that."""
        self._ending = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_runs.wait(), grace_s)
        self.ended = True

    def _silence_one(self, who: str) -> bool:
        """End the call that has said nothing for the longest, of those who hold more than this client would then."""
        for place, wait in self._silent.items():
            if self._places.of[place.who] > self._places.of[who] + 1 and not wait.expired():
                self._lose(place)
                del self._silent[place]
                wait.reschedule(asyncio.get_running_loop().time())
                return True
        return False

    def _lose(self, place: Place) -> None:
        if not place.lost:
            place.lost = True
            self._places.hold(place.who, -1)

    def _end(self, place: Place) -> None:
        self._lose(place)
        self._running -= 1
        if not self._running:
            self._none_runs.set()


def end_untaken(context: Any, limit_s: float) -> None:
    """End this task's call unless its answer is taken in time: one who reads nothing would hold the place for ever."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(limit_s, task.cancel)
    context.add_done_callback(lambda _: timer.cancel())


def address_of(peer: str) -> str:
    """Return the address of a peer as gRPC names it: ipv4:10.0.0.7:5000 or ipv6:%5B::1%5D:5000."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def close_port(port: int) -> None:
    """Let nobody else connect to a port that gRPC listens at."""
    for own in _sockets(port):
        if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            own.shutdown(socket.SHUT_RDWR)


def hang_up(port: int) -> None:
    """Send nothing more to whoever is connected to a port of gRPC's, behind the answers that are on their way.

    gRPC's own end of a server answers CANCELLED to what has arrived and no handler has taken, as if the client had
    wanted it so; one whose connection ends finds all that was not answered UNAVAILABLE, and asks elsewhere.
    """
    for own in _sockets(port):
        # one that has just been closed by its client
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_WR)


def _sockets(port: int) -> Iterator[socket.socket]:
    """Yield gRPC's sockets of a port, which it shows nobody."""
    for opened in list(OPEN_FILES.iterdir()) if OPEN_FILES.is_dir() else ():
        try:
            number = os.dup(int(opened.name))
        except OSError:
            # it was open while they were listed
            continue
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            os.close(number)
            continue
        with socket.socket(fileno=number) as own:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.getsockname()[1] == port:
                yield own

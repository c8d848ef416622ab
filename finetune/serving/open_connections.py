"""The open connections, of which there are only so many: who goes where one more comes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from enum import IntEnum
from operator import itemgetter

from finetune.serving.clients import name_client

# What has been as it is for less may just be sending.
SETTLED_S = 1.0


class Standing(IntEnum):
    """What a connection is about; where room is needed, what stands first goes first."""

    IDLE = 0
    HALF_SENT = 1
    UNREAD = 2
    ASKING = 3


class Guest(asyncio.Protocol, ABC):
    """A connection that has a place, which it has from the moment that the client connects."""

    # makes the connection, which takes a while over TLS
    coming: asyncio.Task[None]

    @abstractmethod
    def standing(self) -> tuple[Standing, float]:
        """Return what it is about, and since when by the event loop's clock."""

    @abstractmethod
    def cut_off(self) -> None:
        """End it at once, whatever is still to be sent or said."""


class OpenConnections:
    """So many connections, and no address keeps the others out: room comes from the one that holds the most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._clients: dict[Guest, str] = {}

    def take(self, guest: Guest, address: str, now: float) -> bool:
        """Give one that has just connected a place, for which another may have to go; False where none does."""
        client = name_client(None, address)
        if len(self._clients) >= self.most and not self._make_room(client, now):
            return False
        self._clients[guest] = client
        return True

    def leave(self, guest: Guest) -> None:
        self._clients.pop(guest, None)

    def _make_room(self, client: str, now: float) -> bool:
        held = Counter([client, *self._clients.values()])
        most = max(held.values())
        guests = [guest for guest, its in self._clients.items() if held[its] == most]
        standings = [(guest.standing(), guest) for guest in guests]
        if held[client] == most:
            # nobody has a better right to it: what may just be sending stays, and so does what is being answered
            standings = [
                ((standing, since), guest)
                for (standing, since), guest in standings
                if standing < Standing.ASKING and since < now - SETTLED_S
            ]
        if not standings:
            return False
        _, guest = min(standings, key=itemgetter(0))
        self.leave(guest)
        guest.cut_off()
        return True

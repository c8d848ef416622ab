"""The open connections, of which there are only so many: who goes where one more comes."""

from __future__ import annotations

import asyncio
import ipaddress
from abc import ABC, abstractmethod
from collections import Counter
from enum import IntEnum
from operator import itemgetter

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


class Places:
    """So many connections, and no address keeps the others out: room comes from the one that holds the most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._networks: dict[Guest, str] = {}

    def take(self, guest: Guest, address: str, now: float) -> bool:
        """Give one that has just connected a place, for which another may have to go; False where none does."""
        network = network_of(address)
        if len(self._networks) >= self.most and not self._make_room(network, now):
            return False
        self._networks[guest] = network
        return True

    def leave(self, guest: Guest) -> None:
        self._networks.pop(guest, None)

    def _make_room(self, network: str, now: float) -> bool:
        held = Counter([network, *self._networks.values()])
        most = max(held.values())
        guests = [guest for guest, its in self._networks.items() if held[its] == most]
        standings = [(guest.standing(), guest) for guest in guests]
        if held[network] == most:
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


def network_of(address: str) -> str:
    """Return what one client has for certain of an address: of IPv6 all that begin with the same 64 bits."""
    if ":" not in address:
        return address
    ip = ipaddress.IPv6Address(address)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))

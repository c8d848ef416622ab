"""Clients: who is one, and how many places each may hold of those that all share."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network, ip_address

# Of all places, the part that stays free for others where one client would hold more than its share.
KEPT_OF = 4
# Of an IPv6 address, the bits that say whose it is: networks of 2**64 addresses are given out, and no smaller ones.
OWNED_BITS = 64


def name_client(key: str | None, address: str) -> str:
    """Return whom a request counts for: its key by name, or else its address, of IPv6 the network."""
    if key:
        return f"key {key}"
    try:
        parsed = ip_address(address)
    except ValueError:
        # a socket that has none
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed), OWNED_BITS), strict=False))


class Places:
    """Counts who holds how many of `most` places.

    A client finds any place that is free as long as it holds no more than an even share, its own and one for whoever
    comes next counted; with more than that it leaves a quarter of all free. So one client alone holds three quarters,
    and nobody needs to be turned out for another to come in.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self.of: Counter[str] = Counter()

    def has_room(self, who: str, more: int) -> bool:
        """Whether a client may hold so many more."""
        share = self.most / (len(self.of.keys() | {who}) + 1)
        kept = 0 if self.of[who] + more <= share else self.most // KEPT_OF
        return self.taken + more + kept <= self.most

    def hold(self, who: str, more: int) -> None:
        """Count so many more, or with a minus so many less."""
        self.taken += more
        self.of[who] += more
        if not self.of[who]:
            del self.of[who]

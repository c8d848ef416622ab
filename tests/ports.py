"""Ports for servers that have to be told one; those that take 0 for any are started with that."""

from __future__ import annotations

import itertools
import random
import socket

# Below those that systems give to clients, so that none has it by chance before the server does; each process of
# tests begins elsewhere, so that no two try the same.
_CANDIDATES = itertools.count(random.SystemRandom().randrange(12_000, 30_000))


def free_port() -> int:
    """Return another at each call."""
    for port in _CANDIDATES:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("the candidates never end")

"""Compressed bodies: requests are inflated within a limit, responses deflated as the client prefers."""

from __future__ import annotations

import zlib

from finetune.serving.refusal import Refusal, quoted

# zlib's window bits, which also say the format. RFC 9110: "deflate" is zlib's format, not bare deflate.
_WINDOWS = {"gzip": 31, "deflate": 15}
_ALIASES = {"x-gzip": "gzip"}
ENCODINGS = tuple(_WINDOWS)
# level 6 takes seven times as long over probabilities as JSON, for a body 6 % smaller
_LEVEL = 1
# Inflated at one time, in a fraction of a millisecond: as much as a connection brings, though a thousandth may hold it.
STEP_BYTES = 65_536
# gzip may follow gzip, RFC 1952's members, and be one body; each member begins so.
_MEMBER = b"\x1f\x8b"
# Of such members, however many bytes they may hold: each takes a step, an empty one for 20 bytes.
MAX_MEMBERS = 1000


class Inflater:
    """Inflates a body step by step, never to more than `max_bytes` in all, and keeps none of it.

    encoding: the header Content-Encoding. Refuses an unknown one with 415, too much with 413, damage with 400.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        name = _coding(encoding)
        if name not in _WINDOWS:
            taken = " and ".join(ENCODINGS)
            raise Refusal(415, f"Content-Encoding {quoted(encoding)} is not taken; {taken} are, one at a time")
        self._name = name
        self._stream = zlib.decompressobj(_WINDOWS[name])
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._members = 1
        # whether all that was fed has come out
        self.hungry = True

    def feed(self, chunk: bytes = b"") -> bytes:
        """Return the next `STEP_BYTES` at most of what has come, a further chunk included."""
        # one byte more tells a body that is too large from one that just fits; 0, once refused, would mean no limit
        most = min(max(self._left, 0) + 1, STEP_BYTES)
        # one of the two is empty
        rest = self._stream.unconsumed_tail + self._stream.unused_data + chunk
        if self._stream.eof and rest:
            self._begin_member(rest)
        try:
            inflated = self._stream.decompress(rest, most)
        except zlib.error:
            raise Refusal(400, f"the body is damaged, or no {self._name}") from None
        self.hungry = len(inflated) < most and not self._stream.unused_data
        self._left -= len(inflated)
        if self._left < 0:
            raise Refusal(413, f"the body inflates to more than {self._max_bytes / 1e6:g} MB")
        return inflated

    def _begin_member(self, rest: bytes) -> None:
        if self._name != "gzip" or not rest.startswith(_MEMBER[: len(rest)]):
            raise Refusal(400, f"something follows the end of the {self._name} body")
        if self._members == MAX_MEMBERS:
            raise Refusal(413, f"the body has more than {MAX_MEMBERS} gzip members; compress it in one")
        self._members += 1
        self._stream = zlib.decompressobj(_WINDOWS[self._name])

    def finish(self) -> None:
        """Judge the body as a whole, after its last chunk."""
        if not self._stream.eof:
            raise Refusal(400, f"the {self._name} body ends too early")


def compress(body: bytes, accept_encoding: str | None) -> tuple[bytes, str | None]:
    """Return a body as the header Accept-Encoding asks for it, with its Content-Encoding; None: as it is."""
    weights = _weights(accept_encoding or "")
    anything = weights.get("*", 0.0)
    best = max(ENCODINGS, key=lambda name: weights.get(name, anything))
    weight = weights.get(best, anything)
    if weight <= 0 or weights.get("identity", 0.0) > weight:
        return body, None
    return zlib.compress(body, _LEVEL, _WINDOWS[best]), best


def _weights(accept_encoding: str) -> dict[str, float]:
    """Return each coding's q-value, 0 to 1, of a header that any client may have written; what is no number is 0."""
    weights: dict[str, float] = {}
    for part in accept_encoding.split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        quality = next((word[2:] for word in map(str.lower, parameters) if word.startswith("q=")), "1")
        weights[_coding(name)] = _quality(quality)
    return weights


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


def _coding(text: str) -> str:
    name = text.strip().lower()
    return _ALIASES.get(name, name)

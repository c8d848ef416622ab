"""API keys: who asks, and what they may do. Only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starlette.datastructures import Headers

from finetune.errors import FinetuneError
from finetune.serving.refusal import Refusal

Role = Literal["predict", "admin"]
VARIABLE = "FINETUNE_KEYS"
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<role>predict|admin)\s+(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Key:
    """A key by the SHA-256 of it, in hexadecimal; a random key of 128 bits or more needs no slower hash."""

    name: str
    role: Role
    sha256: str


@dataclass(frozen=True)
class Keys:
    """The keys that are known. None known: anybody may ask for predictions, nobody may administer."""

    known: tuple[Key, ...]

    @property
    def keyless(self) -> tuple[Role, ...]:
        """The roles that anybody has."""
        return () if self.known else ("predict",)

    def require(self, headers: Headers, role: Role) -> str | None:
        """Return the name of the key that a request carries, None where none is asked for.

        It stands in `Authorization: Bearer KEY` or `X-API-Key: KEY`. Raises Refusal 401 or 403. An admin's key
        predicts, too.
        """
        if role in self.keyless:
            return None
        if not self.known:
            raise Refusal(403, "no key is set up, and this takes one of an admin (keys=)")
        given = _given(headers)
        if given is None:
            raise Refusal(401, "a key is needed: Authorization: Bearer KEY")
        digest = hashlib.sha256(given.encode()).hexdigest()
        # every key is compared, in constant time, so that the time it takes tells nothing
        found = [key for key in self.known if hmac.compare_digest(key.sha256, digest)]
        if not found:
            raise Refusal(401, "this key is not known")
        if role == "admin" and found[0].role != "admin":
            raise Refusal(403, "this takes the key of an admin")
        return found[0].name


def read_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """Read `NAME predict|admin SHA256`, a line each, from a file, or else from the variable FINETUNE_KEYS.

    Blank lines and those that begin with # are passed over. Raises FinetuneError with the number of a line that is
    wrong, never with what stands in it; where there is no key, as a secret that was not filled in opens nothing; and
    where both are given, as keys of one would be unknown without a word.
    """
    if path is None:
        if VARIABLE not in environment:
            return Keys(())
        source, text, remedy = VARIABLE, environment[VARIABLE], "unset it"
    else:
        if VARIABLE in environment:
            raise FinetuneError(f"keys={path} and {VARIABLE} are both given; leave one out")
        source, text, remedy = f"keys={path}", _read(path), "leave keys= out"
    lines = [(n, line.strip()) for n, line in enumerate(text.replace(";", "\n").splitlines(), start=1)]
    keys = tuple(_key(source, n, line) for n, line in lines if line and not line.startswith("#"))
    if not keys:
        raise FinetuneError(f"{source} holds no key; give keys, or {remedy} to ask for none")
    names = [key.name for key in keys]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise FinetuneError(f"{source}: two keys are named {min(twice)}; give each a name of its own")
    return Keys(keys)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"keys={path} cannot be read: {error}") from None


def _key(source: str, number: int, line: str) -> Key:
    found = LINE.fullmatch(line)
    if found is None:
        raise FinetuneError(
            f"{source}, line {number}: it is not of the form NAME predict|admin SHA256 (64 hexadecimal digits; "
            "make one: printf %s KEY | sha256sum)"
        )
    role: Role = "admin" if found["role"] == "admin" else "predict"
    return Key(found["name"], role, found["sha256"])


def _given(headers: Headers) -> str | None:
    bearer = headers.get("authorization", "")
    if bearer.lower().startswith("bearer "):
        return bearer[len("bearer ") :].strip()
    return headers.get("x-api-key")

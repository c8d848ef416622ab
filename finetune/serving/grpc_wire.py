"""Messages that are small on the wire and large in memory, refused before protobuf makes anything of them."""

from __future__ import annotations

from typing import Any

from finetune.serving.refusal import Refusal
from finetune.serving.tensors import MAX_ELEMENTS

# Twice a BYTES tensor of the most elements that are taken: all else of a request comes to some dozens.
MOST_FIELDS = 2 * MAX_ELEMENTS
# The only numbers of which photos need many, side by side; they grow to four times their size.
LEVELS = "uint_contents"
UNREADABLE = "the message cannot be read"
# How the value of a field stands on the wire: behind its size.
SIZED = 2
LONGEST_VARINT = 10
# Descriptors' own numbers for what is no number.
TEXTS = (9, 12)


def require_few_fields(message: bytes, kind: Any) -> None:
    """Raise Refusal 400 where a message has more fields and numbers than any request of its kind needs.

    An empty field takes two bytes, and what protobuf makes of it fifty.
    """
    found = 0
    parts = [(0, len(message), kind.DESCRIPTOR)]
    while parts:
        at, end, descriptor = parts.pop()
        while at < end:
            key, at = _varint(message, at)
            size, at = _size(message, at, key & 7)
            found += 1
            field = descriptor.fields_by_number.get(key >> 3)
            if key & 7 == SIZED and field is not None:
                if field.message_type is not None:
                    parts.append((at, min(at + size, end), field.message_type))
                elif field.type not in TEXTS and field.name != LEVELS:
                    found += size
            at += size
            if found > MOST_FIELDS:
                raise Refusal(400, f"the message has more than {MOST_FIELDS} fields and numbers, {LEVELS} aside")


def _size(message: bytes, at: int, wire: int) -> tuple[int, int]:
    """Return how many bytes a field's value has, and where they begin."""
    match wire:
        case 0:
            _, after = _varint(message, at)
            return after - at, at
        case 1:
            return 8, at
        case 2:
            return _varint(message, at)
        case 5:
            return 4, at
    # groups, which the protocol has none of
    raise Refusal(400, UNREADABLE)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where what is behind it begins."""
    value = 0
    for shift in range(0, 7 * LONGEST_VARINT, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise Refusal(400, UNREADABLE)

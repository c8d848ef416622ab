from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.serving.compression import ENCODINGS, MAX_MEMBERS, STEP_BYTES, Inflater, compress
from finetune.serving.refusal import Refusal

DEFLATED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
encodings = st.sampled_from(ENCODINGS)


def inflate(body: bytes, encoding: str, max_bytes: int = 1_000_000, chunk: int = 1000) -> bytes:
    inflater = Inflater(encoding, max_bytes)
    parts = []
    for at in range(0, len(body), chunk):
        parts.append(inflater.feed(body[at : at + chunk]))
        while not inflater.hungry:
            parts.append(inflater.feed())
    inflater.finish()
    assert all(len(part) <= STEP_BYTES for part in parts)
    return b"".join(parts)


def refused(body: bytes, encoding: str = "gzip", max_bytes: int = 1_000_000, chunk: int = 1000) -> Refusal:
    with pytest.raises(Refusal) as caught:
        inflate(body, encoding, max_bytes, chunk)
    return caught.value


def outcome(body: bytes, encoding: str) -> bytes | int:
    """Return what a body inflates to, or the status of its refusal."""
    try:
        return inflate(body, encoding)
    except Refusal as refusal:
        return refusal.status


@given(body=st.binary(max_size=5000), encoding=encodings, chunk=st.integers(1, 6000))
@settings(max_examples=60)
def test_what_was_deflated_comes_back_in_chunks_of_any_size(body: bytes, encoding: str, chunk: int) -> None:
    assert inflate(DEFLATED[encoding](body), encoding, max_bytes=len(body), chunk=chunk) == body


@given(body=st.binary(max_size=2000), accept=st.sampled_from(["gzip", "deflate", "x-gzip;q=0.1", "*"]))
@settings(max_examples=40)
def test_a_compressed_response_is_read_by_others(body: bytes, accept: str) -> None:
    compressed, encoding = compress(body, accept)
    assert {"gzip": gzip.decompress, "deflate": zlib.decompress}[str(encoding)](compressed) == body


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_exactly_the_limit_is_taken_and_a_byte_more_is_not(encoding: str, chunk: int) -> None:
    for body in (b"x" * 50_000, os.urandom(50_000)):
        assert inflate(DEFLATED[encoding](body), encoding, 50_000, chunk) == body
        assert refused(DEFLATED[encoding](body), encoding, 49_999, chunk).status == 413


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=1)
    inflater = Inflater("gzip", 10_000)
    with pytest.raises(Refusal, match=r"more than 0\.01 MB") as caught:
        inflater.feed(bomb)
    assert caught.value.status == 413
    # what was not inflated is still there, but for what the limit let through
    assert len(inflater._stream.unconsumed_tail) > len(bomb) - 10_000
    for _ in range(3):
        with pytest.raises(Refusal, match="more than"):
            inflater.feed(bomb)


def test_nothing_may_be_allowed() -> None:
    assert inflate(gzip.compress(b""), "gzip", max_bytes=0) == b""
    assert refused(gzip.compress(b"1"), max_bytes=0).status == 413


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_what_ends_early_or_goes_on_is_refused(encoding: str, chunk: int) -> None:
    whole = DEFLATED[encoding](b"some text " * 20)
    for end in range(len(whole)):
        short = refused(whole[:end], encoding, chunk=chunk)
        assert (short.status, short.message) == (400, f"the {encoding} body ends too early")
    for more in (b"x", zlib.compress(b"more")):
        long = refused(whole + more, encoding, chunk=chunk)
        assert (long.status, long.message) == (400, f"something follows the end of the {encoding} body")


@given(bodies=st.lists(st.binary(max_size=2000), min_size=1, max_size=5), chunk=st.integers(1, 6000))
@settings(max_examples=60)
def test_gzip_behind_gzip_is_one_body(bodies: list[bytes], chunk: int) -> None:
    whole = b"".join(bodies)
    members = b"".join(map(gzip.compress, bodies))
    assert inflate(members, "gzip", max_bytes=len(whole), chunk=chunk) == whole == gzip.decompress(members)
    if whole:
        assert refused(members, "gzip", len(whole) - 1, chunk).status == 413


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_a_second_body_is_judged_as_the_first(chunk: int) -> None:
    first, second = gzip.compress(b"some text " * 20), gzip.compress(b"more")
    for end in range(1, len(second)):
        assert refused(first + second[:end], chunk=chunk).message == "the gzip body ends too early"
    damaged = second[:-8] + bytes(4) + second[-4:]
    assert refused(first + damaged, chunk=chunk).message == "the body is damaged, or no gzip"


def test_several_bodies_of_gzip_are_bounded_in_steps_and_in_number() -> None:
    inflater = Inflater("gzip", 10 * STEP_BYTES)
    steps = [inflater.feed(gzip.compress(bytes(STEP_BYTES)) * 11)]
    while sum(map(len, steps)) < 10 * STEP_BYTES:
        assert not inflater.hungry
        steps.append(inflater.feed())
    assert max(map(len, steps)) == STEP_BYTES
    assert refused(gzip.compress(bytes(STEP_BYTES)) * 11, max_bytes=10 * STEP_BYTES).status == 413
    empty = gzip.compress(b"")
    assert inflate(empty * MAX_MEMBERS, "gzip") == b""
    many = refused(empty * (MAX_MEMBERS + 1))
    assert (many.status, many.message) == (413, "the body has more than 1000 gzip members; compress it in one")


@given(body=st.binary(max_size=200), encoding=encodings, data=st.data())
@settings(max_examples=60)
def test_damage_is_refused_or_harmless(body: bytes, encoding: str, data: st.DataObject) -> None:
    """A changed checksum is damage; a changed time in gzip's header is not."""
    damaged = bytearray(DEFLATED[encoding](body))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    assert outcome(bytes(damaged), encoding) in (body, 400, 413)


@given(body=st.binary(max_size=100), encoding=encodings)
@settings(max_examples=40)
def test_any_bytes_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    assert isinstance(outcome(body, encoding), bytes) or outcome(body, encoding) in (400, 413)


def test_bare_deflate_is_no_deflate() -> None:
    bare = zlib.compress(b"text", wbits=-15)
    assert refused(bare, "deflate").message == "the body is damaged, or no deflate"


def test_encodings_have_other_spellings() -> None:
    assert inflate(gzip.compress(b"text"), " X-GZip ") == b"text"
    assert inflate(zlib.compress(b"text"), "DEFLATE") == b"text"


@pytest.mark.parametrize("encoding", ["br", "", "gzip, gzip", "identity", "zstd"])
def test_other_encodings_are_refused_with_what_is_taken(encoding: str) -> None:
    refusal = refused(b"", encoding)
    assert refusal.status == 415
    assert f"{encoding!r} is not taken; gzip and deflate are" in refusal.message


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, None),
        ("", None),
        ("br", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip ; Q=0.5 , deflate;q=0.4", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("br;q=1, *;q=0.1", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity, gzip", "gzip"),
        ("gzip;q=nonsense", None),
        ("gzip;q=nan, deflate;q=2", None),
        (";;;,,,=", None),
    ],
)
def test_the_client_chooses_how_a_response_is_compressed(accept: str | None, chosen: str | None) -> None:
    body = b"text " * 100
    answer, encoding = compress(body, accept)
    assert encoding == chosen
    assert (answer == body) == (chosen is None)


@given(accept=st.text(max_size=60))
@settings(max_examples=40)
def test_any_header_is_understood_somehow(accept: str) -> None:
    assert compress(b"text", accept)[1] in (None, *ENCODINGS)

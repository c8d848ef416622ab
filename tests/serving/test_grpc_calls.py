from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from finetune.serving.grpc_calls import Calls, Place, address_of
from finetune.serving.refusal import Refusal


class Context:
    """A call as gRPC has it, which ends when the test says so."""

    def __init__(self) -> None:
        self.end: Callable[[object], None]
        self.place: Place

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self.end = callback


def begin(calls: Calls, who: str) -> Context:
    context = Context()
    context.place = calls.begin(who, context)
    return context


async def never() -> bytes:
    await asyncio.get_running_loop().create_future()
    return b""


def test_one_client_s_calls_leave_room_for_others() -> None:
    async def test() -> None:
        calls = Calls(12)
        held = [begin(calls, "busy") for _ in range(9)]
        with pytest.raises(Refusal, match="9 calls run already, 9 of this client; come back later") as refused:
            begin(calls, "busy")
        assert refused.value.status == 429
        held += [begin(calls, "other") for _ in range(3)]
        with pytest.raises(Refusal):
            begin(calls, "third")
        for context in held:
            context.end(context)
        await asyncio.wait_for(calls.finish(10), 1)

    asyncio.run(test())


def test_the_longest_silent_call_of_who_holds_more_is_ended_for_who_finds_no_place() -> None:
    async def test() -> None:
        calls = Calls(8)

        async def silent(who: str) -> bytes:
            context = begin(calls, who)
            try:
                return await calls.hear(context.place, never(), 60)
            finally:
                context.end(context)

        crowd = [asyncio.ensure_future(silent(who)) for who in ["one"] * 6 + ["two"] * 2]
        await asyncio.sleep(0)
        last = [begin(calls, "last")]
        with pytest.raises(Refusal, match="another client needed the place") as refused:
            await crowd[0]
        assert refused.value.status == 429
        assert not any(each.done() for each in crowd[1:])
        # until those who are silent have as few
        last += [begin(calls, "last") for _ in range(2)]
        with pytest.raises(Refusal, match="calls run already"):
            begin(calls, "last")
        await asyncio.sleep(0.01)
        assert [each.done() for each in crowd] == [True] * 3 + [False] * 5
        for each in crowd:
            each.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        for context in last:
            context.end(context)
        await asyncio.wait_for(calls.finish(10), 1)

    asyncio.run(test())


def test_a_message_that_comes_is_heard_and_one_that_does_not_is_given_up() -> None:
    async def said() -> bytes:
        return b"message"

    async def test() -> None:
        calls = Calls(8)
        assert await calls.hear(begin(calls, "a").place, said(), 60) == b"message"
        with pytest.raises(Refusal, match=r"the message did not come within 0\.01 s") as refused:
            await calls.hear(begin(calls, "a").place, never(), 0.01)
        assert refused.value.status == 408

    asyncio.run(test())


@pytest.mark.parametrize(
    ("peer", "address"), [("ipv4:10.0.0.7:5000", "10.0.0.7"), ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1")]
)
def test_a_peer_s_address_is_read(peer: str, address: str) -> None:
    assert address_of(peer) == address

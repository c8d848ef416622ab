from __future__ import annotations

import asyncio
import threading

from finetune.serving.grpc_messages import in_time


def test_what_takes_long_to_read_is_read_beside_the_loop() -> None:
    async def reader(message: bytes) -> threading.Thread:
        thread = await in_time(len(message), lambda _: threading.current_thread(), message)
        assert isinstance(thread, threading.Thread)
        return thread

    async def test() -> None:
        # 37 ms, of nothing but empty fields
        assert await reader(b"\x2a\0" * 20_000) is not threading.current_thread()
        assert await reader(b"\x2a\0" * 2_500) is not threading.current_thread()
        assert await reader(b"\x2a\0" * 100) is threading.current_thread(), "sooner than a thread would"

    asyncio.run(test())

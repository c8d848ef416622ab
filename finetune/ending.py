"""The end of a process whose threads cannot be stopped."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time


def leave_threads_behind(after_s: float, code: int) -> None:
    """End the process soon, whatever its threads still work on: what they would answer nobody waits for any more."""

    def end() -> None:
        time.sleep(after_s)
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()

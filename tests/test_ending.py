from __future__ import annotations

import subprocess
import sys


def test_a_thread_that_cannot_be_stopped_does_not_keep_the_process() -> None:
    script = (
        "import sys, threading, time\n"
        "from finetune.ending import leave_threads_behind\n"
        "threading.Thread(target=time.sleep, args=[60]).start()\n"
        "leave_threads_behind(0.1, 3)\n"
        "print('stopped')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "stopped\n", "")

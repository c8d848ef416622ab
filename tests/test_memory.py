from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from finetune import memory
from finetune.memory import available_bytes
from tests.conftest import run_python


def limits(folder: Path, most: str, used: int, caching: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {caching}\nslab 7\n")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_a_container_has_what_its_limit_leaves_and_what_only_caches_files(cgroup: Path) -> None:
    limits(cgroup, "1000000", used=900_000, caching=50_000)
    assert available_bytes() == 150_000


def test_a_container_over_its_limit_has_nothing(cgroup: Path) -> None:
    limits(cgroup, "1000000", used=1_100_000, caching=0)
    assert available_bytes() == 0


@pytest.mark.parametrize("most", ["max", str(2**60)])
def test_without_a_limit_below_the_machines_own_it_is_what_the_machine_has(most: str, cgroup: Path) -> None:
    limits(cgroup, most, used=0, caching=0)
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_where_there_are_no_containers_it_is_what_the_machine_has(cgroup: Path) -> None:
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


IN_LITTLE_MEMORY = """
import resource
import numpy, psutil
from finetune.memory import available_bytes

resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28,) * 2)
print(available_bytes())
kept = [numpy.ones(2**12) for _ in range(2**12)]
print(available_bytes())
last = kept.pop()
kept.clear()
print(available_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_limit_of_the_shell_counts_and_what_a_process_has_freed_is_free() -> None:
    before, less, after = map(int, run_python(IN_LITTLE_MEMORY).split())
    assert 0.9 * 2**28 < before <= 1.1 * 2**28
    # blocks too small for mappings of their own, which stay with the process as there is one above them
    assert less == pytest.approx(before - 2**27, rel=0.1)
    assert after == pytest.approx(before, rel=0.1)

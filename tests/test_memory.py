from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from finetune import memory
from finetune.memory import available_bytes


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

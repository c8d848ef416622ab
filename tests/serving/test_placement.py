from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from tests import gpus
from tests.serving.conftest import assembled

pytestmark = pytest.mark.anyio

FULL = "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; file=cuda_call.cc"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


class Gpu:
    """full: whether it has no room for another model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
        self.full = full
        gpus.install(monkeypatch, before_open=self._require_room)

    def _require_room(self) -> None:
        if self.full:
            raise RuntimeError(FULL)


async def test_a_version_for_which_a_gpu_has_no_room_is_not_moved_to_the_cpu(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(monkeypatch, full=False)
    repository = assembled(models, device="auto").repository
    await repository.start()
    gpu.full = True
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    for _ in range(2):
        await repository.refresh()
    (model,) = repository.everything
    assert (model.version, model.describe()["provider"]) == ("1", "cuda")
    gpu.full = False
    await repository.load("tiny")
    (model,) = repository.everything
    assert (model.version, model.describe()["provider"], model.describe()["why"]) == ("2", "cuda", "CUDA works")


async def test_a_server_that_began_on_the_cpu_stays_there_and_says_why(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = Gpu(monkeypatch, full=True)
    repository = assembled(models, device="auto").repository
    await repository.start()
    gpu.full = False
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    for _ in range(2):
        await repository.refresh()
    (model,) = repository.everything
    assert (model.version, model.describe()["provider"]) == ("2", "cpu")
    assert model.describe()["why"] == "no CUDA: CUDA failure 2: out of memory"
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [f"device=auto takes the CPU, though there is an NVIDIA driver: {FULL}"]


async def test_a_named_device_is_never_exchanged(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, full=True)
    with pytest.raises(FinetuneError, match=r"^device=cuda does not work here: CUDA failure 2: out of memory"):
        await assembled(models, device="cuda").repository.start()

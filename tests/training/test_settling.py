from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.cli import run
from finetune.config import TrainConfig
from finetune.data.manifest import Manifest, Photo
from finetune.errors import FinetuneError
from finetune.stores import open_store
from finetune.training.settling import settle_epochs, settle_image_size
from tests.conftest import TINY, train_config


def manifest(tmp_path: Path, *sizes: tuple[int, int]) -> Manifest:
    photos = [Photo(f"{n}.jpg", "a", "train", str(n), "", "", *size) for n, size in enumerate(sizes)]
    # one of validation and one that cannot be read count for nothing
    photos.append(Photo("x.jpg", "a", "val", "x", "", "", 9000, 9000))
    photos.append(Photo("y.jpg", "a", "train", "y", "damaged", "", 0, 0))
    return Manifest(open_store(str(tmp_path)), tuple(photos))


@pytest.mark.parametrize(
    ("sizes", "size_px"),
    [
        ([(32, 32)], 128),
        ([(95, 96)], 128),
        ([(96, 96)], 480),
        ([(48, 192)], 480),
        ([(32, 32), (40, 40), (4000, 3000)], 128),
    ],
)
def test_the_image_size_follows_that_of_most_training_photos(
    sizes: list[tuple[int, int]], size_px: int, tmp_path: Path
) -> None:
    photos = manifest(tmp_path, *sizes)
    assert settle_image_size(train_config("recipe=bit"), photos).data.image_size == size_px
    # a person's own, and no table
    assert settle_image_size(train_config("recipe=bit", "data.image_size=224"), photos).data.image_size == 224
    assert settle_image_size(train_config(), photos).data.image_size == "auto"


@pytest.mark.parametrize(
    ("words", "photos", "batches", "epochs"),
    [
        ((), 400, 13, 20),
        # four batches a step: 4 steps of 13 batches
        (("recipe=bit",), 400, 13, 125),
        (("recipe=bit",), 19_999, 625, 4),
        (("recipe=bit",), 20_000, 625, 64),
        (("recipe=bit",), 499_999, 15_625, 3),
        (("recipe=bit",), 500_000, 15_625, 6),
        (("recipe=bit",), 3, 1, 500),
        (("recipe=bit", "trainer.max_epochs=2"), 400, 13, 2),
        (("recipe=bit", "trainer.max_steps=7"), 400, 13, 2),
        (("recipe=bit", "trainer.max_steps=null", "trainer.max_epochs=9"), 400, 13, 9),
        (("trainer.max_steps=1",), 400, 13, 1),
        (("trainer.max_steps=14",), 400, 13, 2),
    ],
)
def test_the_smaller_of_steps_and_epochs_ends_training(
    words: tuple[str, ...], photos: int, batches: int, epochs: int
) -> None:
    assert settle_epochs(train_config(*words), photos, batches).trainer.max_epochs == epochs


def test_epochs_of_the_head_alone_leave_some_for_the_layers() -> None:
    config = train_config("freeze=full", "freeze.head_epochs=3", "trainer.max_epochs=3")
    with pytest.raises(FinetuneError, match=r"freeze\.head_epochs=3 of 3 epochs leaves none in which layers train"):
        settle_epochs(config, 10, 1)


def test_zeros_and_their_moving_average_exclude_each_other(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "freeze=full"]
    assert run([*words, "optimizer.l1=0.1", "trainer.ema_decay=0.9"]) == 2
    assert "optimizer.l1 makes weights exactly 0, and the moving average" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainer": {"max_steps": {5: 1}}}, "a table begins at 0"),
        ({"trainer": {"max_steps": {}}}, "a table begins at 0"),
        ({"trainer": {"max_steps": {-1: 2, 0: 1}}}, "a table begins at 0"),
        ({"trainer": {"max_steps": {0: 0}}}, "greater than or equal to 1"),
        ({"data": {"auto_sizes": {0: 7}}}, "greater than or equal to 32"),
        ({"augment": {"mixup": {0: -0.1}}}, "greater than or equal to 0"),
    ],
)
def test_a_table_has_a_value_for_every_number(given: dict[str, dict[str, Any]], message: str) -> None:
    values = train_config().model_dump()
    ((section, change),) = given.items()
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**values, section: {**values[section], **change}})


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ((), 0.003 * 128 / 512),
        (("data.batch_size=64", "trainer.accumulate=8"), 0.003),
        (("optimizer.learning_rate=0.01",), 0.01),
        (("optimizer.learning_rate='1e-2 per 64'",), 0.02),
        (("optimizer=adam",), 3e-4),
    ],
)
def test_a_rate_may_be_given_for_a_number_of_photos_a_step(words: tuple[str, ...], rate: float) -> None:
    assert train_config("recipe=bit", *words).optimizer.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("given", ["0.003 per 0", "fast per 512", "0.003 per", "-1 per 2", "per 512"])
def test_a_rate_that_cannot_be_read_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "data.root=x", "output=y", f"optimizer.learning_rate='{given}'"]) == 2
    assert "is wrong: input should be" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", ["auto", "0", "two"])
def test_a_rate_for_a_number_of_photos_needs_that_of_a_batch(
    batch_size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "data.root=x", "output=y", "recipe=bit", f"data.batch_size={batch_size}"]) == 2
    said = (
        "optimizer.learning_rate=0.003 per 512 is wrong: in proportion to the photos of a step it needs data.batch_size"
    )
    assert said in capsys.readouterr().err


def test_a_rate_is_not_looked_for_where_a_fitted_head_has_brought_the_loss_down(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "optimizer.learning_rate=auto"]
    assert run(["train", *words, "freeze=lp_ft"]) == 2
    assert "freeze=lp_ft begins with a fitted head, whose loss is low already; give a rate" in capsys.readouterr().err

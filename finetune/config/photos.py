"""Which photos, how they are split, and how they come to the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.config.tables import from_zero_on
from finetune.schema import Address, Place, Section

SidePx = Annotated[int, Field(ge=32, le=2048)]
Fit = Literal["squash", "crop"]


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


class SourceConfig(Section):
    """Which photos there are, and how they are split; the same for every command that reads a labelled set."""

    root: Address = Field(
        description="folder of photos (root/CLASS/* or root/{train,val,test}/CLASS/*), a .csv or .parquet table of "
        "them, a .zip, .tar shards, or any fsspec address"
    )
    class_from: Literal["folder", "path", "none"] = Field(
        description="folder: the top folder is the class; path: the whole folder path is, as in a/b/photo.jpg -> a/b; "
        "none: photos without labels"
    )
    group_pattern: Annotated[str, AfterValidator(_regular_expression)] | None = Field(
        description="regular expression searched in each path; photos for which it (or its first group) finds the same "
        "text never stand in two splits: patient, product, burst; quoted twice for the shell: "
        "'data.group_pattern=\"patient(\\d+)\"'"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of each class that chooses between candidates, where the folder has no val/"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of each class kept for the final figure, where the folder has no train/ and test/"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        description="cross-validation: the photos that are not for test make this many folds, data.fold validates"
    )
    fold: Annotated[int, Field(ge=0)] = Field(description="which of data.folds validates, from 0")
    splits_from: Place | None = Field(
        description="a run folder or manifest.csv whose photos keep their splits; new ones are assigned as usual"
    )
    near_duplicates: Annotated[int, Field(ge=0, le=12)] | None = Field(
        description="photos whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates and "
        "never stand in two splits; null: only exact copies count"
    )
    alpha_over: Literal["white", "black"] = Field(description="what transparent photos are laid over")
    on_problem: Literal["skip", "error"] = Field(
        description="skip: unusable photos are left out and counted; error: the first one stops the command"
    )

    @field_validator("fold")
    @classmethod
    def _is_one_of_the_folds(cls, fold: int, given: ValidationInfo) -> int:
        folds = given.data.get("folds")
        if folds is None and fold:
            raise ValueError("needs data.folds, how many there are")
        if folds is not None and fold >= folds:
            raise ValueError(f"data.folds={folds} are numbered 0 to {folds - 1}")
        return fold

    @field_validator("splits_from")
    @classmethod
    def _leaves_no_folds(cls, place: Path | None, given: ValidationInfo) -> Path | None:
        if place is not None and given.data.get("folds"):
            raise ValueError("keeps the validation photos as they were, data.folds chooses others; leave one out")
        return place


class DataConfig(SourceConfig):
    image_size: Literal["auto"] | SidePx = Field(
        description="side of the square the model sees, in px; auto: the probe tries several, else the backbone's own"
    )
    auto_sizes: Annotated[dict[int, SidePx], AfterValidator(from_zero_on)] | None = Field(
        description="image_size=auto: the side by that of most training photos (median root of the area, px): "
        "{0: 128, 96: 480} is 128 below 96 px; null: as image_size says"
    )
    fit: Fit = Field(
        description="squash: scale both sides, all of the photo stays visible; crop: keep the shape, cut the centre"
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        description="photos per training step, of all processes together; at least two for each, as batch norm needs; "
        "auto: the largest power of two that fits the memory of one, up to 1024 on a GPU and 64 on a CPU, and an "
        "eighth of the photos"
    )
    cache: Literal["none", "ram", "disk"] = Field(
        description="where decoded photos are kept, for partial and full: in memory, or in the run folder until it ends"
    )
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        description="processes that load training photos; auto: the cores, at most 8"
    )

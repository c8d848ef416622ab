"""Distortions of training photos."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.config.tables import ByPhotos
from finetune.schema import Fraction, Section, ascending

Area = Annotated[tuple[Fraction, Fraction], AfterValidator(ascending)]


class AugmentConfig(Section):
    """Distortions of training photos, for freeze=partial and full; in the order in which they are applied."""

    crop_area: Area | None = Field(
        description="random resized crop: least and largest share of the photo's area; null: no crop"
    )
    crop_ratio: Annotated[tuple[float, float], AfterValidator(ascending)] = Field(
        description="random resized crop: least and largest width over height"
    )
    random_crop: Annotated[float, Field(ge=0.1, le=1)] | None = Field(
        description="random square cut at one scale: its share of the side (AlexNet: 0.875, 224 of 256 px); null: none"
    )
    horizontal_flip: Fraction = Field(description="chance of mirroring left to right")
    vertical_flip: Fraction = Field(description="chance of mirroring top to bottom")
    dihedral: Fraction = Field(
        description="chance of one of the square's eight symmetries: quarter turns, mirrored or not"
    )
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(description="largest turn either way, in degrees; 0: none")
    shear: Annotated[float, Field(ge=0, le=45)] = Field(
        description="largest slant along either side, in degrees; 0: none"
    )
    elastic: Annotated[float, Field(ge=0, le=0.1)] = Field(
        description="local warping: standard deviation of the shift of a point, as a share of the side; 0: none"
    )
    grid: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="warping by strips: most by which each fifth of the photo is stretched or squeezed; 0: none"
    )
    trivial_augment: Fraction = Field(
        description="chance of TrivialAugment: one operation of 14, of random strength (Müller and Hutter 2021)"
    )
    colour_add: Annotated[float, Field(ge=0, le=255)] = Field(
        description="most that is added to or taken from each of R, G and B, in levels of 255; 0: none"
    )
    brightness: Fraction = Field(description="jitter: largest change of brightness, as a share of it; 0: none")
    contrast: Fraction = Field(description="jitter: largest change of contrast, as a share of it; 0: none")
    saturation: Fraction = Field(description="jitter: largest change of saturation, as a share of it; 0: none")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        description="jitter: largest turn of the colour circle, as a share of it; 0: none"
    )
    pca_sigma: Annotated[float, Field(ge=0)] = Field(
        description="PCA colour shift: standard deviation of its three draws (AlexNet: 0.1); 0: none"
    )
    pca_from: Literal["photos", "imagenet"] = Field(
        description="PCA colour shift: components of the training photos, or the usual constants of ImageNet"
    )
    pca_pixels: Annotated[int, Field(ge=1)] = Field(
        description="PCA colour shift: most pixels of each training photo that its components are computed from"
    )
    erase: Fraction = Field(description="chance of filling a rectangle with noise")
    erase_area: Area = Field(description="erasing: least and largest share of the area")
    mixup: ByPhotos[Annotated[float, Field(ge=0)]] = Field(
        description="mixup: alpha of the beta distribution that two photos and their labels are blended by; 0: none. A "
        "table goes by the number of training photos: {0: 0.0, 20000: 0.1}"
    )
    cutmix: Annotated[float, Field(ge=0)] = Field(
        description="cutmix: alpha of the beta distribution of the share that is pasted from another photo; 0: none; "
        "with mixup, each batch gets one of the two"
    )

    @field_validator("random_crop")
    @classmethod
    def _crops_once(cls, share: float | None, given: ValidationInfo) -> float | None:
        area = given.data.get("crop_area")
        if share is not None and area is not None:
            raise ValueError(
                f"augment.crop_area={list(area)} crops too; leave one out of augment=[...] or set it to null"
            )
        return share

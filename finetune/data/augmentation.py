"""Distortions of training photos; the only module that knows Albumentations."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would otherwise ask the network for news
import albumentations as A

from finetune.config import AugmentConfig
from finetune.data.pca import ColourPCA, add_colour
from finetune.preprocess import Pixels


class PCAColourShift(A.ImageOnlyTransform):  # type: ignore[misc]  # Albumentations has no types
    """Add one random vector along the training set's colour components to every pixel.

    Unlike Albumentations' FancyPCA, which takes the components of the photo itself and scales its centred pixels, so
    that the mean colour stays where it was.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):  # type: ignore[misc]
        eigenvalues: tuple[float, float, float]
        eigenvectors: tuple[tuple[float, float, float], ...]
        sigma: float

    def __init__(
        self,
        eigenvalues: tuple[float, float, float],
        eigenvectors: tuple[tuple[float, float, float], ...],
        sigma: float = 0.1,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.eigenvalues = eigenvalues
        self.eigenvectors = eigenvectors
        self.sigma = sigma
        self.components = ColourPCA.model_validate({"eigenvalues": eigenvalues, "eigenvectors": eigenvectors})

    def get_params(self) -> dict[str, Any]:
        """Draw the three alphas of one photo."""
        return {"alphas": self.random_generator.normal(0.0, self.sigma, size=3).tolist()}

    def apply(self, img: Pixels, alphas: list[float], **_: Any) -> Pixels:
        return add_colour(img, self.components.shift(np.asarray(alphas)))

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("eigenvalues", "eigenvectors", "sigma")


class Augmentation:
    """From a training photo to the distorted square the model sees; the same seed gives the same pixels.

    crops: whether it takes photos of any size; else it takes them as validation does, already of the model's size.
    """

    def __init__(self, config: AugmentConfig, image_size: int, components: ColourPCA | None) -> None:
        """components: needed where config.pca_sigma is above 0."""
        size = (image_size, image_size)
        steps: list[Any] = []
        self.crops = config.crop_area is not None
        if config.crop_area is not None:
            steps.append(
                A.RandomResizedCrop(
                    size=size,
                    scale=config.crop_area,
                    ratio=config.crop_ratio,
                    interpolation=cv2.INTER_CUBIC,
                    # plain cubic shrinking would alias where validation's Pillow does not
                    area_for_downscale="image",
                )
            )
        steps += [A.HorizontalFlip(p=config.horizontal_flip), A.VerticalFlip(p=config.vertical_flip)]
        if config.pca_sigma > 0:
            if components is None:
                raise ValueError("a PCA colour shift needs the components of the training photos")
            steps.append(PCAColourShift(components.eigenvalues, components.eigenvectors, config.pca_sigma))
        self.pipeline = A.Compose(steps)

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """Distort (H, W, 3) uint8 RGB, of any size if `crops`, to (image_size, image_size, 3)."""
        self.pipeline.set_random_seed(seed)
        distorted: Pixels = self.pipeline(image=pixels)["image"]
        return distorted

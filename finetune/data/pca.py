"""The PCA colour shift of Krizhevsky et al. 2012, section 4.1, fitted on the photos that are trained on.

Colours of real photos vary mostly along a few directions, such as the light's. A shift along the principal components
of the RGB values changes a photo as another light would; one vector is added to every pixel of the photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from finetune.config import AugmentConfig
from finetune.preprocess import Pixels, Readable, decode


class ColourPCA(BaseModel):
    """Principal components of RGB values scaled to 0..1.

    eigenvalues: variances, largest first; eigenvectors: row k belongs to eigenvalue k, its entries in R, G, B order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    eigenvalues: tuple[float, float, float]
    eigenvectors: tuple[
        tuple[float, float, float],
        tuple[float, float, float],
        tuple[float, float, float],
    ]

    def shift(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the RGB vector, in levels of 0..255, that the draws alpha (3,) or (N, 3) stand for.

        This is the paper's [p1, p2, p3][a1 l1, a2 l2, a3 l3]^T.
        """
        scaled = np.asarray(alphas, dtype=np.float64) * np.asarray(self.eigenvalues)
        shift: NDArray[np.float64] = 255.0 * scaled @ np.asarray(self.eigenvectors)
        return shift


# Those of ImageNet that Torch's ResNet training made common; its table has a column per eigenvalue.
IMAGENET = ColourPCA(
    eigenvalues=(0.2175, 0.0188, 0.0045),
    eigenvectors=(
        (-0.5675, -0.5808, -0.5836),
        (0.7192, -0.0045, -0.6948),
        (0.4009, -0.8140, 0.4203),
    ),
)


def colour_components(config: AugmentConfig, files: Iterable[Readable]) -> ColourPCA:
    """Return the components that the configuration asks for. files: the training photos, read only if they are."""
    return IMAGENET if config.pca_from == "imagenet" else fit_colour_pca(files, config.pca_pixels)


def fit_colour_pca(files: Iterable[Readable], pixels_per_photo: int) -> ColourPCA:
    """Compute the components in one pass over the photos, holding only sums.

    pixels_per_photo: the most that one contributes, so that a large photo weighs no more than a small one.
    """
    # JPEG may be decoded at a fraction of its size: a covariance needs many colours, not sharp edges
    wanted_px = math.isqrt(pixels_per_photo) + 1
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for file in files:
        pixels = _sample(np.asarray(decode(file, wanted_px=wanted_px)), pixels_per_photo)
        count += len(pixels)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    descending: list[Any] = [*values[::-1].clip(min=0).tolist()]
    return ColourPCA.model_validate({"eigenvalues": descending, "eigenvectors": vectors[:, ::-1].T.tolist()})


def add_colour(pixels: Pixels, shift: Iterable[float]) -> Pixels:
    """Add one RGB vector, in levels, to every pixel of (H, W, 3); rounded and clipped to 0..255.

    Returns `pixels` itself where the vector rounds to nothing.
    """
    levels = [255 if level > 255 else -255 if level < -255 else round(level) for level in shift]
    more = [level if level > 0 else 0 for level in levels]
    less = [-level if level < 0 else 0 for level in levels]
    shifted: Any = pixels
    # OpenCV goes through floats, eight times as slow, unless all numbers are those of a byte; its stubs know no scalars
    if any(more):
        shifted = cv2.add(shifted, (*more, 0))  # type: ignore[call-overload]
    if any(less):
        into = None if shifted is pixels else shifted
        shifted = cv2.subtract(shifted, (*less, 0), into)  # type: ignore[call-overload]
    return np.asarray(shifted)


def _sample(pixels: Pixels, most: int) -> NDArray[np.float64]:
    flat = pixels.reshape(-1, 3)
    if len(flat) > most:
        # not every n-th, which would fall in step with stripes
        flat = flat[np.random.default_rng(0).integers(len(flat), size=most)]
    return flat.astype(np.float64) / 255.0

"""The colour components of a run's training photos, for the PCA colour shift; computed once a run."""

from __future__ import annotations

from finetune.config import AugmentConfig
from finetune.data.manifest import Manifest
from finetune.data.pca import ColourPCA, colour_components
from finetune.files import write_text
from finetune.progress import track
from finetune.run import Run


def colour_pca(config: AugmentConfig, manifest: Manifest, run: Run) -> ColourPCA | None:
    """Return them, or None where the configuration shifts no colours."""
    if config.pca_sigma == 0:
        return None
    if not run.colour_pca.is_file():
        files = manifest.files(manifest.of("train"))
        components = colour_components(config, track(files, "colours of the training photos", total=len(files)))
        write_text(run.colour_pca, components.model_dump_json(indent=2) + "\n")
    return ColourPCA.model_validate_json(run.colour_pca.read_text(encoding="utf-8"))

"""`finetune export`: make a bundle, or ask one whether it still answers as it did."""

from __future__ import annotations

from finetune.config import ExportConfig


def main(config: ExportConfig) -> str:
    """Export a run or a checkpoint, or verify a bundle; verifying needs no torch, unless a run is there to be asked."""
    if config.verify is not None and config.run is None:
        from finetune.export.verify import verify

        return verify(config.verify, config.data.root, config.device)
    from finetune.export.export import export, verify_beside_run

    return export(config) if config.verify is None else verify_beside_run(config)

"""From a trained network to a bundle that answers as it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from finetune.bundle import SCHEMA, Bundle, BundleInfo, ModelCard, Parity, open_bundle
from finetune.config import HIDDEN_NAMES, ExportConfig, ModelName
from finetune.errors import FinetuneError
from finetune.export.card import model_card, recorded_evaluations
from finetune.export.checkpoint import from_checkpoint
from finetune.export.graph import describe, exported_graph
from finetune.export.kserve import kserve_manifest
from finetune.export.parity import Probabilities, compare, require_agreement, save_table, torch_probabilities
from finetune.export.publishing import describe_versions, publish, staging
from finetune.export.reduction import reduce
from finetune.export.source import Source, from_run
from finetune.export.verify import parity_limit
from finetune.files import write_text
from finetune.golden import digest_file, spread_over_classes, write_answers, write_photos
from finetune.parallel import ordered_map
from finetune.run import FinishedRun
from finetune.runtime import Device
from finetune.serving.predictor import Predictor, on_each_provider

log = logging.getLogger(__name__)

# By how much more than at its export a reduced file may differ from the trained network, on another processor.
REDUCED_SLACK = 1.5

Answering = Callable[[NDArray[np.uint8]], Probabilities]
Asked = dict[str, str | float | int | bool | None]

# Keys that decide what is in the files: with the same ones a network is exported once.
DECIDING = ("precision", "prune", "weights", "optimised", "max_accuracy_loss", "golden")


def export(config: ExportConfig) -> str:
    """Export, compare over real photos, and publish; returns where the bundle is and how close it is."""
    assert config.output is not None
    source = _open(config)
    name = source.card.name
    manifest = None if config.kserve is None else kserve_manifest(name, config.kserve)
    asked = {key: getattr(config, key) for key in DECIDING}
    bundle = _same_export(config.output / name, source, asked, config)
    told = [f"already exported: {bundle.folder}"] if bundle else []
    if bundle is not None:
        describe_versions(config.output / name, bundle.info.model)
    else:
        with staging(config.output) as folder:
            info, told = _fill(folder, source, asked, config)
            bundle = publish(folder, config.output, info)
        told.append(f"bundle: {bundle.folder}")
    if manifest is not None:
        write_text(config.output / name / "kserve.yaml", manifest)
    return "\n".join([*told, _summary(bundle), f"next: finetune serve models={config.output}"])


def _fill(folder: Path, source: Source, asked: Asked, config: ExportConfig) -> tuple[BundleInfo, list[str]]:
    """Write all files of a version but `bundle.json`; returns what that is to say, and what to tell."""
    card = source.card
    log.info("exporting %s at %d px", card.backbone, card.preprocessing.image_size)
    proto, raw_nodes = exported_graph(source.network, card.preprocessing.image_size)
    told = [f"{raw_nodes} nodes as torch exports them, {len(proto.graph.node)} after folding"]
    _write(proto, card, folder)
    info = BundleInfo(
        schema_version=SCHEMA, model=card, precision="fp32", changes=(), parity=(), asked=asked, files={}, seal=""
    )
    trained = torch_probabilities(source.network, card.preprocessing, source.manifest.files(source.compared))
    compared = _agreeing(Bundle(folder, info), source, trained, config.parity_limit, config.device)
    expected, answer = trained, _in_torch(source)
    if config.reduces:
        reduced = reduce(proto, source, config)
        told.extend(reduced.told)
        if reduced.proto is not proto:
            _write(reduced.proto, card, folder)
            limit = config.parity_limit if reduced.exact else None
            compared = _agreeing(Bundle(folder, info), source, trained, limit, config.device)
        if not reduced.exact:  # what it is to answer from now on is no longer what the trained network does
            expected, answer = compared[0].answers, compared[0].predictor.run
        info = info.model_copy(update={"precision": reduced.precision, "changes": reduced.changes})
    _write_golden(folder, source, expected, answer, config.golden)
    info = info.model_copy(update={"parity": tuple(each.parity for each in compared)})
    write_text(folder / "README.md", _readme(info, source.run))
    return info, told


def verify_beside_run(config: ExportConfig) -> str:
    """Compare a bundle with the run it came from over the run's own photos, in torch and onnxruntime."""
    assert config.run is not None
    assert config.verify is not None
    bundle, source = open_bundle(config.verify), _open(config)
    if bundle.info.model.weights_sha256 != source.card.weights_sha256:
        raise FinetuneError(
            f"verify={config.verify} was not exported from run={config.run} as it is now; export it again"
        )
    trained = torch_probabilities(source.network, source.card.preprocessing, source.manifest.files(source.compared))
    largest = max(parity.max_difference for parity in bundle.info.parity)
    limit = parity_limit(bundle) or REDUCED_SLACK * largest
    compared = _compare(bundle, source, trained, limit, config.device)
    for each in compared:
        require_agreement(each.parity, "the bundle answers otherwise than its run")
    words = [_in_words(each.parity) for each in compared]
    return "\n".join([f"{bundle.folder}: every file is as it was exported", *words])


def _write(proto: onnx.ModelProto, card: ModelCard, folder: Path) -> None:
    describe(proto, card)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())


def _open(config: ExportConfig) -> Source:
    """Open what is to be exported; raises FinetuneError where its file's or folder's name cannot be the model's."""
    source = from_checkpoint(config) if config.run is None else from_run(FinishedRun(config.run), config)
    try:
        TypeAdapter(ModelName).validate_python(source.card.name)
    except ValidationError:
        raise FinetuneError(
            f"'{source.card.name}' cannot be a model's name; give name=, of letters, digits, . _ - and none of "
            f"{', '.join(HIDDEN_NAMES)}"
        ) from None
    return source


class _Compared(NamedTuple):
    """answers: (N, classes) of the predictor's model to the compared photos."""

    predictor: Predictor
    parity: Parity
    answers: Probabilities


def _agreeing(
    staged: Bundle, source: Source, trained: Probabilities, limit: float | None, device: Device
) -> list[_Compared]:
    """Compare on each provider that is here; raises ParityError where one answers otherwise."""
    found = _compare(staged, source, trained, limit, device)
    for each in found:
        provider = each.predictor.session.provider
        table = source.table if provider == "cpu" else source.table.with_stem(f"{source.table.stem}-{provider}")
        saved = save_table(table, source, trained, each.answers)
        told = f" ({table} has every photo)" if saved else ""
        require_agreement(each.parity, f"no bundle was written{told}")
    return found


def _compare(
    bundle: Bundle, source: Source, trained: Probabilities, limit: float | None, device: Device
) -> list[_Compared]:
    return [
        _Compared(predictor, *compare(trained, predictor, source, source.compared, limit))
        for predictor in on_each_provider(bundle, device)
    ]


def _readme(info: BundleInfo, run: FinishedRun | None) -> str:
    return model_card(info, run.result, run.manifest, recorded_evaluations(run)) if run else model_card(info, None)


def _write_golden(folder: Path, source: Source, expected: Probabilities, answer: Answering, count: int) -> None:
    """expected: (N, classes) of the compared photos; answer: gives the same of the pixels of golden ones."""
    write_answers(folder, _digests(source), expected)
    if not count:
        return
    chosen = [source.compared[place] for place in spread_over_classes([p.label for p in source.compared], count)]
    files = source.manifest.files(chosen)
    labelled = [(photo.label, file) for photo, file in zip(chosen, files, strict=True)]
    write_photos(folder, labelled, source.card.preprocessing, answer)


def _digests(source: Source) -> list[str]:
    """Return the sha256 of each compared photo as it is now, which may not be what training read."""
    found = list(ordered_map(digest_file, source.manifest.files(source.compared)))
    changed = [photo for photo, digest in zip(source.compared, found, strict=True) if photo.sha256 != digest]
    if changed:
        log.warning(
            "%d of the %d compared photos are no longer what they were in training, %s first; "
            "what is compared is what they are now",
            len(changed),
            len(found),
            changed[0].path,
        )
    return found


def _in_torch(source: Source) -> Answering:
    def answer(images: NDArray[np.uint8]) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = source.network.probabilities(torch.from_numpy(images)).numpy()
        return probabilities

    return answer


def _same_export(model: Path, source: Source, asked: Asked, config: ExportConfig) -> Bundle | None:
    """Return the newest version there if it was made from this very network in this very way, and as closely."""
    if not model.is_dir():
        return None
    try:
        bundle = open_bundle(model)
    except FinetuneError as error:
        log.warning("the version there cannot be used: %s", error)
        return None
    info = bundle.info
    # another Pillow or torch makes no other model
    apart: dict[str, object] = {"versions": {}, "metrics": {}}
    same = info.model.model_copy(update=apart) == source.card.model_copy(update=apart) and info.asked == asked
    close = all(each.limit is None or each.max_difference <= config.parity_limit for each in info.parity)
    compared = config.device == "auto" or config.device in [each.provider for each in info.parity]
    return bundle if same and close and compared else None


def _summary(bundle: Bundle) -> str:
    return "\n".join(map(_in_words, bundle.info.parity))


def _in_words(parity: Parity) -> str:
    limit = "" if parity.limit is None else f" (limit {parity.limit:g})"
    return (
        f"verified on {parity.photos} photos at batch sizes {', '.join(map(str, parity.batch_sizes))} on "
        f"{parity.provider}: largest difference {parity.max_difference:.1g}{limit} on {parity.worst_photo}, mean "
        f"{parity.mean_difference:.0e}, same answer on {100 * parity.same_answer:.2f} %\n"
        f"accuracy: {100 * parity.torch_accuracy:.1f} % in torch, {100 * parity.onnx_accuracy:.1f} % in onnxruntime"
    )

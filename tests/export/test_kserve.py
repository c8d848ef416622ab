from __future__ import annotations

import pytest
import yaml

from finetune.errors import FinetuneError
from finetune.export.kserve import kserve_manifest


def test_the_manifest_runs_triton_on_the_repository() -> None:
    manifest = yaml.safe_load(kserve_manifest("flowers", "s3://bucket/models"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["metadata"] == {"name": "flowers"}
    model = manifest["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "onnx"}
    assert (model["protocolVersion"], model["runtime"]) == ("v2", "kserve-tritonserver")
    assert model["storageUri"] == "s3://bucket/models"
    assert set(model["resources"]) == {"requests", "limits"}
    assert model["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8080}
    assert model["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8080}


def test_an_address_with_anything_in_it_stays_one_string() -> None:
    for address in ("s3://b/a: b", 's3://b/"q"#', "gs://b/é 花", "pvc://c/yes\nspec: {}"):
        manifest = yaml.safe_load(kserve_manifest("flowers", address))
        assert manifest["spec"]["predictor"]["model"]["storageUri"] == address


@pytest.mark.parametrize(
    ("name", "made"), [("Flowers", "flowers"), ("oak_leaves v1.2", "oak-leaves-v1-2"), ("a" * 53, "a" * 53)]
)
def test_names_are_made_what_kubernetes_takes(name: str, made: str) -> None:
    assert yaml.safe_load(kserve_manifest(name, "s3://b/m"))["metadata"]["name"] == made


@pytest.mark.parametrize("name", ["2024", "café", "-a", "a_", "", "a" * 54, "a/b", "a\n"])
def test_a_name_that_cannot_be_made_one_is_refused(name: str) -> None:
    with pytest.raises(FinetuneError, match=r"cannot name a Kubernetes service(.|\n)*export it with another name="):
        kserve_manifest(name, "s3://b/m")


def test_a_folder_of_this_machine_is_refused() -> None:
    with pytest.raises(FinetuneError, match="kserve=models names no place that a cluster can read"):
        kserve_manifest("flowers", "models")

"""The manifest with which KServe serves a model repository."""

from __future__ import annotations

import re

import yaml

from finetune.errors import FinetuneError

# Has onnxruntime 1.20. Exported graphs have opset 20, which takes 1.17 (Triton 24.02); KServe's default may be older.
# The configuration refuses those in bf16, at opset 22, and those optimised here, with newer operators of onnxruntime.
TRITON_IMAGE_TAG = "25.03-py3"
HTTP_PORT = 8080
# Kubernetes allows 63 characters, and KServe appends "-predictor" to name what it makes.
LONGEST_NAME = 63 - len("-predictor")


def kserve_manifest(name: str, storage_uri: str) -> str:
    """Return an InferenceService in YAML that runs Triton on a model repository.

    name: is made a DNS-1123 label: lower case, with a hyphen for a dot, a space or an underscore. storage_uri: the
    address of the repository that holds the model's folder, not of that folder. Raises FinetuneError where the name
    cannot be made one, or the address names no scheme.
    Fields: https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/onnx
    """
    if "://" not in storage_uri:
        raise FinetuneError(
            f"kserve={storage_uri} names no place that a cluster can read; upload the model repository and give "
            "its address, such as s3://BUCKET/models, gs://BUCKET/models or pvc://CLAIM/models"
        )
    model = {
        "modelFormat": {"name": "onnx"},
        # without it KServe finds no runtime for this format
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "runtimeVersion": TRITON_IMAGE_TAG,
        "storageUri": storage_uri,
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        "readinessProbe": _probe("/v2/health/ready", failures=3),
        # Triton answers only after its models are loaded and warm
        "livenessProbe": _probe("/v2/health/live", failures=30),
    }
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _service_name(name)},
        "spec": {"predictor": {"model": model}},
    }
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)


def _probe(path: str, failures: int) -> dict[str, object]:
    return {"httpGet": {"path": path, "port": HTTP_PORT}, "periodSeconds": 10, "failureThreshold": failures}


def _service_name(name: str) -> str:
    made = re.sub(r"[._ ]", "-", name.lower())
    # as KServe's admission has it, which is stricter than DNS-1123: a letter comes first
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made) or len(made) > LONGEST_NAME:
        raise FinetuneError(
            f"the model's name '{name}' cannot name a Kubernetes service, which takes at most {LONGEST_NAME} of a-z, "
            "0-9 and '-', from a letter to a letter or digit; export it with another name="
        )
    return made

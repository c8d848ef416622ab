"""The files to deploy with say what the server and its image understand; docs/deploy.md says where they were run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from finetune.config import ServeConfig
from finetune.schema import parse
from tests.conftest import ROOT
from tests.ports import free_port
from tests.serving.conftest import assembled

DEPLOY = ROOT / "docs/deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROMTOOL = shutil.which("promtool")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def kubernetes(kind: str) -> Any:
    (found,) = (document for document in documents("kubernetes.yaml") if document["kind"] == kind)
    return found


def container_of(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


CLAIM, COPYING = documents("models.yaml")
DEPLOYMENT = kubernetes("Deployment")["spec"]["template"]["spec"]
PATCHED = {**container_of(DEPLOYMENT), **container_of(documents("gpu-patch.yaml")[0]["spec"]["template"]["spec"])}
KSERVE = documents("kserve.yaml")[0]["spec"]["predictor"]
COMPOSE = documents("compose.yaml")[0]["services"]
ARGUMENTS = {
    "kubernetes": container_of(DEPLOYMENT)["args"],
    "gpu patch": PATCHED["args"],
    "kserve": container_of(KSERVE)["args"],
    "compose cpu": COMPOSE["cpu"]["command"],
    "compose gpu": COMPOSE["gpu"]["command"],
}
(ENTRYPOINT,) = (json.loads(line[len("ENTRYPOINT ") :]) for line in DOCKERFILE.splitlines() if "ENTRYPOINT [" in line)


def configured(arguments: list[str]) -> ServeConfig:
    """Return what the image's server makes of arguments; raises where a key or a value is wrong."""
    assert ENTRYPOINT[:2] == ["finetune", "serve"]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        values = compose("serve", overrides=[*ENTRYPOINT[2:], *arguments])
    container = OmegaConf.to_container(values, resolve=True)
    assert isinstance(container, dict)
    return parse(ServeConfig, {str(key): value for key, value in container.items()})


@pytest.mark.parametrize("place", ARGUMENTS)
def test_what_the_server_is_given_is_understood_and_leaves_time_to_end(place: str) -> None:
    config = configured(ARGUMENTS[place])
    assert config.host == "0.0.0.0"
    assert config.grace_s >= config.limits.body_s + config.limits.deadline_s
    until_killed_s = {
        "kserve": KSERVE["terminationGracePeriodSeconds"],
        "compose cpu": float(COMPOSE["cpu"]["stop_grace_period"].removesuffix("s")),
        "compose gpu": float(COMPOSE["gpu"]["stop_grace_period"].removesuffix("s")),
    }.get(place, DEPLOYMENT["terminationGracePeriodSeconds"])
    assert until_killed_s > config.drain_s + config.grace_s


def test_an_end_by_default_fits_into_what_docker_gives() -> None:
    config = configured([])
    # and two seconds, as docs/deploy.md has it
    assert config.drain_s + config.grace_s + 2 <= 10


@pytest.mark.parametrize("place", ARGUMENTS)
def test_memory_suffices_for_the_largest_photos_and_all_that_is_held(place: str) -> None:
    config = configured(ARGUMENTS[place])
    given = {
        "kserve": container_of(KSERVE)["resources"],
        "gpu patch": PATCHED["resources"],
        "compose cpu": COMPOSE["cpu"]["deploy"]["resources"],
        "compose gpu": COMPOSE["gpu"]["deploy"]["resources"],
    }.get(place, container_of(DEPLOYMENT)["resources"])
    limits = given["limits"]
    # the patch leaves processors as they are
    processors = float(limits.get("cpus", limits.get("cpu", container_of(DEPLOYMENT)["resources"]["limits"]["cpu"])))
    held_gb = config.limits.held_mb / 1000 * (2 if config.grpc_port else 1)
    in_gb = {"G": 1.0, "Gi": 1.024**3}
    number, unit = re.fullmatch(r"(\d+)(Gi?)", limits["memory"]).groups()  # type: ignore[union-attr]
    # the sum of docs/deploy.md, and room for a model
    assert int(number) * in_gb[unit] >= 0.2 + 0.4 * processors + held_gb + 0.3
    if not place.startswith("compose"):
        assert given["requests"]["memory"] == limits["memory"]


def test_kserve_is_asked_for_what_takes_a_time_to_end() -> None:
    # Knative's webhook denies a revision that has one
    annotations = documents("kserve.yaml")[0]["metadata"]["annotations"]
    assert annotations == {"serving.kserve.io/deploymentMode": "RawDeployment"}
    assert "terminationGracePeriodSeconds" in KSERVE


def test_ports_agree() -> None:
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    port = container_of(DEPLOYMENT)["ports"][0]
    assert configured(ARGUMENTS["kubernetes"]).port == port["containerPort"] == int(exposed)
    assert kubernetes("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert configured(ARGUMENTS["kserve"]).port == container_of(KSERVE)["ports"][0]["containerPort"] == 8080
    for service in COMPOSE.values():
        assert service["ports"] == [f"{exposed}:{exposed}"]
    (job,) = documents("prometheus.yaml")[0]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"localhost:{exposed}"]}]


@pytest.mark.parametrize("container", [container_of(DEPLOYMENT), container_of(KSERVE)], ids=["kubernetes", "kserve"])
def test_probes_ask_what_is_answered(container: Any, tiny_models: Path) -> None:
    paths = set(assembled(tiny_models).app.openapi()["paths"])
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {"readinessProbe", "livenessProbe"} <= set(probes)
    for name, asked in probes.items():
        assert asked["path"] in paths
        assert ports.get(asked["port"], asked["port"]) in ports.values()
        assert ("live" in name) == asked["path"].endswith(("/healthz", "/live"))


@pytest.mark.parametrize(
    "container", [container_of(DEPLOYMENT), PATCHED, container_of(KSERVE), container_of(COPYING["spec"])]
)
def test_clusters_give_it_no_privileges(container: Any) -> None:
    security = {**DEPLOYMENT["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert f"USER {security['runAsUser']}:" in DOCKERFILE
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["limits"]["memory"]


def test_kubernetes_names_what_belongs_together() -> None:
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kubernetes("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("Service")["spec"]["selector"] == labels
    assert kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    volumes = {volume["name"]: volume for volume in DEPLOYMENT["volumes"]}
    mounts = {mount["name"]: mount for mount in container_of(DEPLOYMENT)["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert all(mount["readOnly"] for mount in mounts.values())
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"]
        == COPYING["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == CLAIM["metadata"]["name"]
    )
    config = configured(ARGUMENTS["kubernetes"])
    assert str(config.models) == mounts["models"]["mountPath"]
    assert container_of(COPYING["spec"])["volumeMounts"] == [{"name": "models", "mountPath": str(config.models)}]
    assert str(config.keys) == f"{mounts['keys']['mountPath']}/keys.txt"
    assert set(ARGUMENTS["kubernetes"]) < set(ARGUMENTS["gpu patch"])
    (scaled,) = documents("autoscale.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] == kubernetes("Deployment")["metadata"]["name"]
    assert scaled["spec"]["minReplicaCount"] == kubernetes("Deployment")["spec"]["replicas"]


@pytest.mark.parametrize("service", COMPOSE)
def test_compose_gives_it_no_privileges(service: str) -> None:
    given = COMPOSE[service]
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert f"USER {given['user']}\n" in DOCKERFILE
    assert "tmpfs" not in given
    assert {"cpus", "memory"} == set(given["deploy"]["resources"]["limits"])
    # passed on where it is set, and never empty
    assert given["environment"] == {"FINETUNE_KEYS": None}
    assert given["volumes"] == ["../../models:/models:ro"]
    assert re.search(rf"^FROM .* AS {given['build']['target']}$", DOCKERFILE, re.MULTILINE)
    assert (DEPLOY / given["build"]["context"] / "Dockerfile").samefile(ROOT / "Dockerfile")


def test_only_the_gpu_service_asks_for_a_gpu_and_only_when_it_is_named() -> None:
    assert "profiles" not in COMPOSE["cpu"]
    assert COMPOSE["gpu"]["profiles"] == ["gpu"]
    (device,) = COMPOSE["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert configured(ARGUMENTS["compose gpu"]).device == configured(ARGUMENTS["gpu patch"]).device == "cuda"


@pytest.mark.parametrize("tls", [False, True])
def test_the_image_s_health_check_asks_as_the_server_was_told(tls: bool, tiny_models: Path, tmp_path: Path) -> None:
    words = [f"models={tiny_models}", "host=0.0.0.0", "port=1", f"port={free_port()}", "threads=1", "drain_s=60"]
    if tls:
        openssl = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=flowers -keyout key.pem -out cert.pem"
        subprocess.run(openssl.split(), cwd=tmp_path, check=True, capture_output=True)
        words += ["tls_cert=cert.pem", "tls_key=key.pem"]
    found = re.search(r"^HEALTHCHECK .* CMD (\[.*?\"\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found
    _, *flags, code = json.loads(found[1].replace("\\\n", ""))
    with subprocess.Popen([sys.executable, "-m", "finetune", "serve", *words], cwd=tmp_path) as server:
        try:
            check = [sys.executable, *flags, code.replace("/proc/1/", f"/proc/{server.pid}/")]

            def health() -> int:
                return subprocess.run(check, capture_output=True, check=False).returncode

            deadline = time.monotonic() + 60
            while health() != 0:
                assert time.monotonic() < deadline
                assert server.poll() is None
            server.send_signal(signal.SIGTERM)
            assert health() == 1
        finally:
            server.kill()


def test_what_the_ray_deployment_takes_from_here_exists() -> None:
    tree = ast.parse((DEPLOY / "ray_serve.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("finetune"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_what_is_copied_to_a_cluster_is_served() -> None:
    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    typed = re.findall(r"(?m)^kubectl (?:apply -f|cp|exec|delete pod) .*", text)
    assert typed[: typed.index("kubectl apply -f docs/deploy/kubernetes.yaml")] == [
        "kubectl apply -f docs/deploy/models.yaml",
        "kubectl cp models/flowers finetune-models:/models/flowers",
        "kubectl delete pod finetune-models",
    ]
    later = typed[typed.index("kubectl delete pod finetune-models") + 1 :]
    later = later[later.index("kubectl apply -f docs/deploy/models.yaml") :]
    pod, copied, shown, _ = later
    assert pod == typed[0], "the pod that copied the first was deleted"
    _, _, source, target = copied.split()
    *_, hidden, visible = shown.split()
    assert (target, visible) == (f"finetune-models:{hidden}", f"/{source}")
    assert Path(hidden).parent == Path(visible).parent
    assert Path(hidden).name.startswith(".")


def test_rules_are_those_that_are_asked_for() -> None:
    (group,) = documents("rules.yaml")[0]["groups"]
    recorded = [rule["record"] for rule in group["rules"] if "record" in rule]
    (trigger,) = documents("autoscale.yaml")[0]["spec"]["triggers"]
    metric, _, selector = trigger["metadata"]["query"].partition("{")
    assert metric in recorded
    # one deployment does not scale another
    assert re.findall(r'(\w+)="', selector) == ["job", "namespace"]
    # above limits.wait_s servers refuse, and the time rises no more
    for place in ("kubernetes", "gpu patch"):
        assert float(trigger["metadata"]["threshold"]) < configured(ARGUMENTS[place]).limits.wait_s == 1
    assert documents("prometheus.yaml")[0]["rule_files"] == ["rules.yaml"]


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian: apt-get install prometheus)")
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    subprocess.run([str(PROMTOOL), "check", "config", DEPLOY / "prometheus.yaml"], check=True)
    at = 'instance="a:8000", job="finetune"'
    model = f'{at}, model="flowers", version="1"'
    full = f'{at}, namespace="full"'
    series = {
        # ends in order: a minute of draining, then gone
        f"up{{{at}}}": "1x10 0x10",
        f"finetune_ready{{{at}}}": "1x4 0x6",
        f"finetune_draining{{{at}}}": "0x4 1x6",
        'finetune_ready{instance="b:8000", job="finetune"}': "0x20",
        'finetune_draining{instance="b:8000", job="finetune"}': "0x20",
        f'finetune_drift_alert{{{model}, of="classes"}}': "0x2 1x20",
        f"finetune_pending_photos{{{model}}}": "6x20",
        f"finetune_batch_photos_sum{{{model}}}": "0+600x20",
        # another deployment, with nothing to do, which would halve the seconds of the first
        f'finetune_pending_photos{{{model}, namespace="other"}}': "0x20",
        f'finetune_batch_photos_sum{{{model}, namespace="other"}}': "0+600x20",
        **{
            f'finetune_requests_total{{{at}, route="/predict", code="{code}"}}': f"0+{a_minute}x20"
            for code, a_minute in (("200", 90), ("500", 2), ("503", 5), ("504", 3))
        },
        f'finetune_refusals_total{{{at}, reason="503"}}': "0+5x20",
        f'finetune_refusals_total{{{at}, reason="504"}}': "0+3x20",
        # all that is asked for is answered, and of the connections one in five has no room
        f'finetune_requests_total{{{full}, route="/predict", code="200"}}': "0+80x20",
        f'finetune_refusals_total{{{full}, reason="503"}}': "0+20x20",
        # as many 503 at the health check as there are answers
        f'finetune_requests_total{{{at}, route="/readyz", code="503"}}': "0+100x20",
        f'finetune_model_load_failures_total{{{at}, model="flowers"}}': "0x5 1x40",
        f'finetune_model_load_failures_total{{{at}, model="new"}}': "_x5 1x40",
        f'finetune_model_load_failures_total{{{at}, model="sound"}}': "0x40",
    }

    def alert(name: str, minute: int, *labels: dict[str, str]) -> dict[str, Any]:
        expected = [{"exp_labels": one} for one in labels]
        return {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected}

    not_ready = {"severity": "critical", "job": "finetune"}
    drifting = {"severity": "warning", "job": "finetune", "instance": "a:8000", "model": "flowers", "version": "1"}
    overloaded = {"severity": "warning", "job": "finetune"}
    not_opened = {"severity": "warning", "job": "finetune", "instance": "a:8000"}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            alert("FinetuneNotReady", 9, {**not_ready, "instance": "b:8000"}),
            alert("FinetuneNotReady", 15, {**not_ready, "instance": "b:8000"}, {**not_ready, "instance": "a:8000"}),
            alert("FinetuneDrift", 10),
            alert("FinetuneDrift", 19, {**drifting, "of": "classes"}),
            alert("FinetuneAbsent", 15),
            alert("FinetuneErrors", 3),
            alert("FinetuneErrors", 15, {"severity": "critical", "job": "finetune"}),
            alert("FinetuneOverloaded", 3),
            alert("FinetuneOverloaded", 15, overloaded, {**overloaded, "namespace": "full"}),
            alert("FinetuneVersionNotOpened", 4),
            alert("FinetuneVersionNotOpened", 10, {**not_opened, "model": "flowers"}, {**not_opened, "model": "new"}),
            alert("FinetuneVersionNotOpened", 35),
        ],
        # six photos in hand, ten answered a second
        "promql_expr_test": [
            {
                "expr": "finetune:photo_seconds",
                "eval_time": "10m",
                "exp_samples": [
                    {"labels": 'finetune:photo_seconds{job="finetune"}', "value": 0.6},
                    {"labels": 'finetune:photo_seconds{job="finetune", namespace="other"}', "value": 0},
                ],
            }
        ],
    }
    nobody = {
        "interval": "1m",
        "input_series": [{"series": 'up{job="other", instance="c:80"}', "values": "1x20"}],
        "alert_rule_test": [alert("FinetuneAbsent", 10, {"severity": "critical", "job": "finetune"})],
    }
    rules = yaml.safe_load((DEPLOY / "rules.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test, nobody]})
    )
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

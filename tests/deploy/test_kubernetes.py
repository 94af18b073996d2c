"""The manifests agree with Kubernetes' schemas, and with the worker."""

import hashlib
import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from devtools import environment, places
from devtools.state import locked
from schemas.amqp import ATTEMPTS_QUEUE, NEWER_QUEUE, partition_queue
from worker.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
"""The oldest and the newest that the manifests are meant for."""

TEXT = {"type": "string", "minLength": 1}
NAMED = {"type": "object", "required": ["name"], "properties": {"name": TEXT}}
KEDA: dict[str, Any] = {
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": NAMED,
            "minReplicaCount": {"type": "integer", "minimum": 0},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer"},
            "cooldownPeriod": {"type": "integer"},
            "fallback": {
                "type": "object",
                "required": ["failureThreshold", "replicas"],
                "additionalProperties": False,
                "properties": {
                    "failureThreshold": {"type": "integer"},
                    "replicas": {"type": "integer"},
                },
            },
            "advanced": {"type": "object"},
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "properties": {
                        # KEDA reads every value as text: a bare number is refused.
                        "metadata": {"type": "object", "additionalProperties": TEXT},
                        "authenticationRef": NAMED,
                    },
                },
            },
        },
    },
    "TriggerAuthentication": {
        "type": "object",
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": TEXT,
                },
            }
        },
    },
}
"""What of KEDA's own resources is used, by its documentation: its schemas are in no package."""


@pytest.fixture(scope="module")
def packages() -> Iterator[None]:
    """The schemas, and a reader of YAML, in a folder of their own: nothing else needs them."""
    pins = (environment.PINS / "kubernetes.txt").read_bytes()
    target = places.in_home("tools") / f"kubernetes-{hashlib.sha256(pins).hexdigest()[:8]}"
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            fresh = target.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            environment.install_apart("kubernetes.txt", fresh)
            fresh.rename(target)
    sys.path.insert(0, str(target))
    yield
    sys.path.remove(str(target))


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = importlib.import_module("yaml")
    found: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text()))
    return found


def everything() -> list[dict[str, Any]]:
    return [
        each
        for path in sorted(FOLDER.rglob("*.yaml"))
        if path.name != "kustomization.yaml"
        for each in documents(path)
    ]


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = (e for e in everything() if (e["kind"], e["metadata"]["name"]) == (kind, name))
    return found


def pods() -> list[dict[str, Any]]:
    return [e["spec"]["template"] for e in everything() if e["kind"] in ("Deployment", "Job")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_manifest_is_what_its_schema_asks_for(packages: None, version: str) -> None:
    validate = importlib.import_module("kubernetes_validate").validate
    for manifest in everything():
        assert {"apiVersion", "kind", "metadata"} <= set(manifest)
        if manifest["apiVersion"] == "keda.sh/v1alpha1":
            jsonschema.validate(manifest["spec"], KEDA[manifest["kind"]])
        else:
            validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", ["prepare", "worker", "console"])
def test_a_kustomization_names_every_file_beside_it(packages: None, folder: str) -> None:
    (kustomization,) = documents(FOLDER / folder / "kustomization.yaml")
    beside = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == beside


def test_every_setting_is_one_of_the_worker(packages: None) -> None:
    known = {f"INGEST_{name.upper()}" for name in Settings.model_fields}
    assert set(one("ConfigMap", "study-ingest")["data"]) <= known
    for name in ("study-ingest", "study-ingest-owner", "study-ingest-console"):
        assert set(one("Secret", name)["stringData"]) <= known


def test_no_secret_has_a_value(packages: None) -> None:
    for secret in (each for each in everything() if each["kind"] == "Secret"):
        assert not any(secret["stringData"].values())


def test_every_object_that_a_manifest_refers_to_exists(packages: None) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in everything()}
    for pod in pods():
        for source in pod["spec"]["containers"][0]["envFrom"]:
            for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if reference in source:
                    assert (kind, source[reference]["name"]) in names
    scaled = one("ScaledObject", "study-ingest-worker")["spec"]
    assert ("Deployment", scaled["scaleTargetRef"]["name"]) in names
    for trigger in scaled["triggers"]:
        assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in names
        pattern = trigger["metadata"]["queueName"]
        for queue in (ATTEMPTS_QUEUE, partition_queue(1), partition_queue(12)):
            assert re.search(pattern, queue)
        assert not re.search(pattern, NEWER_QUEUE)


def test_a_worker_has_time_to_drain(packages: None) -> None:
    grace = one("Deployment", "study-ingest-worker")["spec"]["template"]["spec"][
        "terminationGracePeriodSeconds"
    ]
    drain = float(one("ConfigMap", "study-ingest")["data"]["INGEST_DRAIN_TIMEOUT"])
    # After it: one publish confirm for what the relay has left, and the connections' goodbyes.
    assert grace >= drain + Settings.model_fields["publish_timeout"].default + 10


def test_probes_ask_where_the_worker_answers(packages: None) -> None:
    worker = one("Deployment", "study-ingest-worker")["spec"]["template"]["spec"]["containers"][0]
    port = one("ConfigMap", "study-ingest")["data"]["INGEST_HTTP_PORT"]
    assert worker["ports"] == [{"name": "http", "containerPort": int(port)}]
    asked = {
        name: worker[name]["httpGet"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/live",
        "livenessProbe": "/live",
        "readinessProbe": "/ready",
    }
    assert {probe["port"] for probe in asked.values()} == {"http"}


def test_no_container_runs_with_privileges(packages: None) -> None:
    for pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_selectors_find_their_pods(packages: None) -> None:
    deployment = one("Deployment", "study-ingest-worker")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    budget = one("PodDisruptionBudget", "study-ingest-worker")["spec"]["selector"]["matchLabels"]
    assert labels >= deployment["selector"]["matchLabels"].items()
    assert labels >= budget.items()
    console = one("Deployment", "study-ingest-console")["spec"]["template"]["metadata"]["labels"]
    assert console.items() >= one("Service", "study-ingest-console")["spec"]["selector"].items()
    policy = one("NetworkPolicy", "study-ingest")["spec"]["podSelector"]["matchLabels"]
    for pod in pods():
        assert pod["metadata"]["labels"].items() >= policy.items()

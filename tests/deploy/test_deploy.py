"""The files of deploy/: they name what is there, agree with one another, and hold the server's own rules."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatRequest
from eft_integrations.server.page_routes import FILES, FOLDER, HEADERS, MEDIA_TYPES
from eft_integrations.server.settings import ServerSettings, load_settings
from tests.integrations.server.serving import in_process

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes/base"
NAME = re.compile(r"\b(?:eft|process)_[a-z_]+\b")


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """Kubernetes' documents by kind."""
    found = [own for path in sorted(folder.glob("*.yaml")) for own in yaml.safe_load_all(path.read_text())]
    return {own["kind"]: own for own in found}


def expressions() -> Iterator[str]:
    """All of Prometheus' expressions that the dashboard and the alerts have."""
    for panel in json.loads((DEPLOY / "grafana/dashboards/eft.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    metrics = yaml.safe_load((DEPLOY / "kubernetes/autoscaler.yaml").read_text())["spec"]["metrics"]
    yield from (own["pods"]["metric"]["name"] for own in metrics)


async def test_every_metric_of_dashboard_and_alerts_is_told() -> None:
    async with in_process({"m": ScriptedBackend(["one two"])}) as client:
        messages = [{"role": "user", "content": "hi"}]
        await client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
        await client.post("/v1/chat/completions", json={"model": "none", "messages": messages})
        text = (await client.get("/metrics")).text
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    told = declared | {f"{name}_bucket" for name in declared}
    wanted = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(wanted) > 20
    assert wanted <= told


@pytest.mark.parametrize("text", ["file", "kubernetes"])
def test_configurations_are_the_servers_own(text: str, tmp_path: Path) -> None:
    file = DEPLOY / "eft.toml"
    if text == "kubernetes":
        file = tmp_path / "eft.toml"
        file.write_text(documents(BASE)["ConfigMap"]["data"]["eft.toml"])
    assert load_settings(file).served[0].preset == "atlas", "it comes with the package and needs no download"


def test_kubernetes_waits_longer_than_the_server_drains(tmp_path: Path) -> None:
    found = documents(BASE)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain_s = tomllib.loads(found["ConfigMap"]["data"]["eft.toml"])["drain_timeout_s"]
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain_s + pause_s
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/health"
    keys = tmp_path / "keys"
    keys.write_text(found["Secret"]["stringData"]["keys"])
    assert [own.name for own in load_settings(api_key_file=keys).known_keys] == ["team-a"]


def test_kubernetes_names_agree() -> None:
    found = documents(BASE)
    spec = found["Deployment"]["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    assert spec["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < spec["replicas"]
    volumes = {own["name"]: own for own in pod["volumes"]}
    assert {own["name"] for own in pod["containers"][0]["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert volumes["keys"]["secret"]["secretName"] == found["Secret"]["metadata"]["name"]
    for folder in (BASE, DEPLOY / "kubernetes/gpu"):
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
        files = [*listed["resources"], *(patch["path"] for patch in listed.get("patches", []))]
        assert all((folder / name).exists() for name in files)
    patch = yaml.safe_load((DEPLOY / "kubernetes/gpu/gpu.yaml").read_text())
    patched = found[patch["kind"]]
    assert (patch["apiVersion"], patch["metadata"]["name"]) == (patched["apiVersion"], patched["metadata"]["name"])
    assert patch["spec"]["template"]["spec"]["containers"][0]["name"] == pod["containers"][0]["name"]
    scaled = yaml.safe_load((DEPLOY / "kubernetes/autoscaler.yaml").read_text())["spec"]
    assert scaled["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]


def test_compose_names_agree() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert (DEPLOY / services["eft"]["build"]["context"] / services["eft"]["build"]["dockerfile"]).exists()
    assert int(services["eft"]["stop_grace_period"].removesuffix("s")) > ServerSettings().drain_timeout_s
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", [])) <= set(services)
    assert set(services["eft"]["secrets"]) <= set(compose["secrets"])
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["eft:8000"]


def test_the_image_is_made_of_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    sources = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert sources
    assert all((ROOT / name).exists() for name in sources)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == kept
    extras = re.search(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert "\nUSER 10001:10001\n" in text
    environment = re.findall(r"\bEFT_SERVE_([A-Z_]+)=", text)
    assert {name.lower() for name in environment} <= set(ServerSettings.model_fields)


def test_the_unit_waits_longer_than_the_server_drains() -> None:
    text = (DEPLOY / "eft-serve.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > ServerSettings().drain_timeout_s


async def test_the_page_answers_without_a_key_and_what_it_calls_does_not() -> None:
    settings = ServerSettings(api_key="secret")  # type: ignore[arg-type]
    async with in_process({"m": ScriptedBackend(["one"])}, settings) as client:
        for path in FILES:
            for answer in (await client.get(path), await client.head(path)):
                assert answer.status_code == 200
                assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert (await client.get("/v1/models")).status_code == 401
        rules = (await client.get("/")).headers["content-security-policy"].split("; ")
        assert {"default-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(rules)
        assert not any("unsafe" in rule or "*" in rule or "http" in rule for rule in rules)
    async with in_process({"m": ScriptedBackend(["one"])}, ServerSettings(page=False)) as client:
        assert (await client.get("/")).status_code == 404


def test_the_page_holds_nothing_of_elsewhere_and_nothing_inline() -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES]
    assert len(files) == len(FILES)
    for path in files:
        text = path.read_text()
        assert len(text.splitlines()) < 300
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    named = re.findall(r"(?:href|src)=\"([^\"#]+)\"", page)
    assert all(f"/{name}" in FILES for name in named)


async def test_token_rewards_are_told_where_they_are_asked_for() -> None:
    backend = ScriptedBackend(["one two"])
    async with in_process({"m": backend}) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "eft_token_rewards": True}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    asked: ChatRequest = backend.requests[0]
    assert asked.sampling["logprobs"] == 0

"""The files of deploy/, read by the programs that they are for; `make test-deploy` brings those along."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BESIDE = Path(sys.executable).parent


def checked(program: str, *arguments: str | Path, folder: Path = DEPLOY) -> str:
    """What a program says that finds nothing wrong."""
    path = shutil.which(program, path=f"{BESIDE}:{os.environ['PATH']}")
    assert path, f"{program} is not here: `make test-deploy` installs it"
    done = subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_reads_its_configuration_and_the_alerts() -> None:
    told = checked("promtool", "check", "config", "prometheus.yml", folder=DEPLOY / "prometheus")
    assert "8 rules found" in told


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    checked("hadolint", "Dockerfile")


def test_compose_reads_its_file() -> None:
    compose = importlib.import_module("compose_spec").PyCompose.from_yaml((DEPLOY / "compose.yaml").read_text())
    compose.validate()
    assert set(compose.service_names()) == {"eft", "prometheus", "grafana"}


@pytest.mark.parametrize("file", [*KUBERNETES.glob("base/[!k]*.yaml"), KUBERNETES / "autoscaler.yaml"], ids=str)
def test_kubernetes_knows_every_field(file: Path) -> None:
    """But those of kustomization.yaml, which is for the client; tests/deploy follows its names."""
    assert "passed" in checked("kubernetes-validate", "--strict", file)


def test_the_unit_has_no_fault_that_systemd_knows(tmp_path: Path) -> None:
    text = (DEPLOY / "eft-serve.service").read_text()
    unit = tmp_path / "eft-serve.service"
    unit.write_text(text.replace("/opt/eft/bin/eft ", f"{sys.executable} "))
    told = checked("systemd-analyze", "verify", unit)
    assert "eft-serve.service" not in told

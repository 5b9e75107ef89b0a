"""What `make packages` has built: the files in each wheel, its metadata, and the command that the core's wheel installs."""

from __future__ import annotations

import subprocess
import sys
from email import message_from_string
from email.message import Message
from importlib.metadata import distribution, entry_points
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]
TOPS = {
    "eft_engine": {"eft_engine", "eft_integrations", "eft_tuning"},
    "langchain_eft": {"langchain_eft"},
    "llama_index_llms_eft": {"llama_index"},
}
PARTNERS = {"langchain_eft": "langchain", "llama_index_llms_eft": "llama-index"}
TYPED = {
    "eft_engine": ["eft_engine/py.typed", "eft_integrations/py.typed", "eft_tuning/py.typed"],
    "langchain_eft": ["langchain_eft/py.typed"],
    "llama_index_llms_eft": ["llama_index/llms/eft/py.typed"],
}
each_distribution = pytest.mark.parametrize("name", TOPS)


def wheel_of(name: str) -> ZipFile:
    """The one wheel of a distribution."""
    [path] = (ROOT / "dist").glob(f"{name}-*.whl")
    return ZipFile(path)


def metadata_of(name: str) -> tuple[str, Message]:
    """The METADATA file of a wheel as it is, and its fields."""
    wheel = wheel_of(name)
    [path] = (path for path in wheel.namelist() if path.endswith(".dist-info/METADATA"))
    text = wheel.read(path).decode()
    return text, message_from_string(text)


@each_distribution
def test_wheel_has_its_own_packages_their_types_and_the_licence(name: str) -> None:
    wheel = wheel_of(name)
    files = wheel.namelist()
    tops = {PurePosixPath(path).parts[0] for path in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == TOPS[name]
    assert set(TYPED[name]) <= set(files)
    [licence] = (path for path in files if path.endswith("/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


@each_distribution
def test_wheel_has_the_python_files_of_the_repository_and_no_others(name: str) -> None:
    folder = ROOT if name == "eft_engine" else ROOT / "packages" / name.replace("_", "-")
    of_the_repository = {
        path.relative_to(folder).as_posix() for top in TOPS[name] for path in (folder / top).rglob("*.py")
    }
    assert {path for path in wheel_of(name).namelist() if path.endswith(".py")} == of_the_repository


def test_weights_of_the_presets_are_in_the_core_alone() -> None:
    weights = {name: [path for path in wheel_of(name).namelist() if path.endswith(".safetensors")] for name in TOPS}
    of_the_zoo = (ROOT / "eft_engine" / "zoo").rglob("*.safetensors")
    assert sorted(weights.pop("eft_engine")) == sorted(path.relative_to(ROOT).as_posix() for path in of_the_zoo)
    assert not any(weights.values())


@each_distribution
def test_metadata_is_what_an_index_takes(name: str) -> None:
    text, fields = metadata_of(name)
    Metadata.from_email(text, validate=True)
    assert fields["Name"] == name.replace("_", "-")
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Description-Content-Type"] == "text/markdown"
    assert str(fields.get_payload()).strip()


@pytest.mark.parametrize("name", PARTNERS)
def test_partner_needs_the_core_of_its_own_version_and_nothing_else(name: str) -> None:
    version = metadata_of("eft_engine")[1]["Version"]
    fields = metadata_of(name)[1]
    assert fields["Version"] == version
    assert fields.get_all("Requires-Dist") == [f"eft-engine[{PARTNERS[name]}]=={version}"]


def test_commands_and_plugins_are_listed_once_and_installed_by_the_wheel() -> None:
    scripts = distribution("eft-engine").entry_points.select(group="console_scripts")
    assert [(script.name, script.value) for script in scripts] == [("eft", "eft_engine.cli:main")]
    assert [found.name for found in entry_points(group="eft.commands")] == ["bake", "lm-eval", "serve", "tune"]
    plugins = [found for found in entry_points(group="vllm.general_plugins") if found.value.startswith("eft_")]
    assert [plugin.name for plugin in plugins] == ["eft"]


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("serve", "--help"), ("--version",)])
def test_the_command_of_the_wheel_runs(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Outside the repository, whose folders would be imported otherwise."""
    command = Path(sys.prefix) / "bin" / "eft"
    ran = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout

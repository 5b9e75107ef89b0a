"""Fields of the three distributions: those of the partners agree with the core's, and each requirement is one that was tested."""

from __future__ import annotations

import ast
import runpy
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import eft_engine

ROOT = Path(__file__).parents[2]
PARTNERS = {"langchain-eft": "langchain", "llama-index-llms-eft": "llama-index"}
"""Distributions in packages/, and the extra of the core that each needs."""
each_partner = pytest.mark.parametrize("name", PARTNERS)


def fields_of(folder: Path) -> dict[str, Any]:
    """The pyproject.toml in a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


CORE = fields_of(ROOT)


@each_partner
def test_partner_says_of_itself_what_the_core_says(name: str) -> None:
    partner = fields_of(ROOT / "packages" / name)
    assert partner["build-system"] == CORE["build-system"]
    for field in ("requires-python", "license", "license-files", "classifiers"):
        assert partner["project"][field] == CORE["project"][field]
    assert partner["project"]["name"] == name


@each_partner
def test_version_licence_and_requirement_are_the_cores(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "packages" / "core_fields.py"))["write_core_fields"](tmp_path, extra=PARTNERS[name])
    dynamic = fields_of(ROOT / "packages" / name)["tool"]["setuptools"]["dynamic"]
    assert (tmp_path / dynamic["version"]["file"]).read_text().strip() == eft_engine.__version__
    assert (tmp_path / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    [line] = (tmp_path / dynamic["dependencies"]["file"]).read_text().splitlines()
    needed = Requirement(line)
    assert needed.name == CORE["project"]["name"] == "eft-engine"
    assert needed.extras <= set(CORE["project"]["optional-dependencies"])
    assert str(needed.specifier) == f"=={eft_engine.__version__}"


@each_partner
def test_partner_asks_for_its_own_extra(name: str) -> None:
    setup = (ROOT / "packages" / name / "setup.py").read_text(encoding="utf-8")
    assert f'extra="{PARTNERS[name]}"' in setup


def test_llamahub_finds_the_classes_where_it_looks() -> None:
    folder = ROOT / "packages" / "llama-index-llms-eft"
    hub = fields_of(folder)["tool"]["llamahub"]
    module = ast.parse((folder / hub["import_path"].replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in module.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(hub["class_authors"]) == {name for name in imported if name.endswith("LLM")}  # the hub lists LLMs
    for above in ("llama_index", "llama_index/llms"):
        assert not (folder / above / "__init__.py").exists(), "a file here would hide every other package of LlamaIndex"


def lower_bounds(requirements: list[str]) -> dict[str, str]:
    """The oldest version that is allowed, by package."""
    found = {}
    for line in requirements:
        requirement = Requirement(line)
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if bounds:
            found[requirement.name] = bounds[0]
    return found


def pins(file: str) -> dict[str, str]:
    """Versions by package."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("extra", PARTNERS.values())
def test_oldest_framework_that_is_allowed_is_the_one_that_is_tested(extra: str) -> None:
    bounds = lower_bounds(CORE["project"]["optional-dependencies"][extra])
    assert bounds == {name: version for name, version in pins("constraints-oldest.txt").items() if name in bounds}


def test_installed_distribution_is_the_only_one_that_lists_the_commands() -> None:
    """A second one, left over from another name of the distribution, would list each again."""
    for group in CORE["project"]["entry-points"]:
        own = [found.value for found in entry_points(group=group) if found.value.startswith("eft_")]
        assert sorted(own) == sorted(CORE["project"]["entry-points"][group].values()), "make venv installs it again"
    assert distribution("eft-engine").version == eft_engine.__version__


COMES_WITH = {
    "llama_index_instrumentation": "llama-index-core",
    "pydantic_core": "pydantic",
    "referencing": "jsonschema",
    "starlette": "fastapi",
    "tqdm": "lm_eval",
    "typing_extensions": "pydantic",
    "yaml": "huggingface_hub",
}
"""Modules of packages that a requirement brings as a part of its own interface."""
GIVEN_BY = {
    "agents": "openai-agents",
    "autogen_core": "autogen-ext",
    "llama_cpp": "llama-cpp-python",
    "llama_index": "llama-index-core",
    "openai": "openai-agents",
    "opentelemetry": "opentelemetry-sdk",
    "pydantic_ai": "pydantic-ai-slim",
}
"""Requirements that are not called as their modules."""
WITHOUT_EXTRA = {"crewai", "flash_attn", "langchain", "langgraph", "pytest", "vllm"}
"""They pin what the project needs in other versions, are built for one machine, or are there where an application asks for them."""


def third_party_modules() -> set[str]:
    """Top names of everything that the packages import and that is neither theirs nor Python's."""
    names: set[str] = set()
    for package in ("eft_engine", "eft_integrations", "eft_tuning"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    tops = {name.partition(".")[0] for name in names}
    return {top for top in tops if not top.startswith("eft_")} - sys.stdlib_module_names


def test_everything_that_is_imported_is_required_by_the_core_or_an_extra() -> None:
    extras = CORE["project"]["optional-dependencies"]
    lines = [*CORE["project"]["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    required = {Requirement(line).name.replace("-", "_").lower() for line in lines}
    missing = {
        module
        for module in third_party_modules() - WITHOUT_EXTRA
        if (GIVEN_BY | COMES_WITH).get(module, module).replace("-", "_") not in required
    }
    assert missing == set()

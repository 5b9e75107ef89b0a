"""Imports go one way: contracts <- text, decoding <- models <- engine <- evaluation, zoo <- cli; adapters use one file.

`eft_integrations` and `eft_tuning` stand above, beside each other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eft_engine

ROOT = Path(__file__).parents[1]
ENGINE, INTEGRATIONS, TUNING = ROOT / "eft_engine", ROOT / "eft_integrations", ROOT / "eft_tuning"

CONTRACTS = {
    "errors",
    "config",
    "outputs",
    "forbidding",
    "overdue",
    "preparing",
    "options",
    "weights",
    "grammars",
    "prompts",
    "prompt_pairs",
    "call_decision",
}
ALLOWED_PARTS = {
    "contracts": CONTRACTS,
    "text": CONTRACTS | {"text"},
    "transfer": set(),
    "decoding": CONTRACTS | {"transfer", "decoding"},
    "models": CONTRACTS | {"transfer", "text", "models"},
    "engine": CONTRACTS | {"transfer", "text", "decoding", "models", "engine"},
    "evaluation": CONTRACTS | {"engine", "evaluation"},
    "zoo": CONTRACTS | {"engine", "zoo"},
    "cli": CONTRACTS | {"engine", "models", "evaluation", "zoo", "cli", "__version__"},
}
ALLOWED_LIBRARIES: dict[str, set[str]] = {
    "contracts": {"pydantic"},
    "text": {"llguidance"},
    "transfer": {"torch"},
    "decoding": {"torch", "numpy"},
    "models": {
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "peft",
        "safetensors",
        "huggingface_hub",
        "rich",
        "psutil",
        "flash_attn",
        "gguf",
        "llama_cpp",
    },
    "engine": {"torch"},
    "evaluation": {"pydantic", "matplotlib", "jsonschema", "filelock"},
    "zoo": set(),
    "cli": {"typer", "rich", "matplotlib"},
}
INTEGRATIONS_ALLOWED = {
    "blocks": set(),
    "lazy": {"blocks"},
    "weights": {"blocks", "lazy"},
    "sampling": set(),
    "durations": set(),
    "named_trio": {"weights", "wire"},
    "moved": set(),
    "pieces": set(),
    "chat": {"sampling"},
    "wire": {"chat"},
    "backends": {"chat", "durations", "pieces", "sampling", "so_far", "weights", "wire"},
    "json_types": set(),
    "json_objects": set(),
    "so_far": {"chat"},
    "class_schema": {"chat"},
    "context_aware": set(),
    "call_options": {"durations", "sampling", "wire"},
    "in_time": {"chat", "pieces"},
    "question": {"backends", "chat", "in_time", "pieces"},
    "holding": {"backends"},
    "trio_model": {"backends", "call_options", "chat", "durations", "holding", "question", "sampling", "weights", "wire"},
    "langchain": {
        "backends", "call_options", "chat", "class_schema", "context_aware", "json_objects", "named_trio", "question", "sampling",
        "so_far", "trio_model", "weights", "wire",
    },
    "llama_index": {
        "backends", "call_options", "chat", "class_schema", "context_aware", "json_objects", "lazy", "named_trio", "pieces",
        "question",
        "sampling", "so_far", "trio_model", "weights", "wire",
    },
    "agents": {"backends", "call_options", "chat", "pieces", "sampling", "weights", "wire"},
    "server": {"backends", "chat", "json_objects", "sampling", "so_far", "weights", "wire"},
    "vllm": {"weights"},
    "lm_eval": {"backends", "weights"},
    "testing": {"backends", "chat", "llama_index", "weights"},
    "__init__": {"weights"},
}  # fmt: skip
"""What each part of eft_integrations may import of the others; the rest has moved, and imports `moved` alone."""
SERVER_NEEDS = "vllm.launch"
"""And `eft serve` starts vLLM."""


def imported(source: str) -> list[str]:
    """Full names of everything that a source text imports, at any depth; a relative import begins with its dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return sorted(names)


def violations(part: str, source: str) -> list[str]:
    """Imports of a file in `part` of eft_engine that go the wrong way."""
    wrong = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        if top == "eft_engine":
            allowed = rest.partition(".")[0] in ALLOWED_PARTS[part]
        else:
            allowed = top in sys.stdlib_module_names or top in ALLOWED_LIBRARIES[part]
        if not allowed:
            wrong.append(name)
    return wrong


def integration_violations(place: tuple[str, ...], source: str) -> list[str]:
    """Imports of a file of eft_integrations, at `place` in it, that go the wrong way. Host libraries are free."""
    wrong = []
    part = place[0].removesuffix(".py")
    neighbours = {part, "json_types", *INTEGRATIONS_ALLOWED.get(part, {"moved"})}
    for name in imported(source):
        top, _, rest = name.partition(".")
        first = rest.partition(".")[0]
        if top == "eft_engine":
            allowed = first in eft_engine.__all__ or first in CONTRACTS or first == "__version__"
        elif top == "eft_integrations":
            allowed = first in neighbours or (part == "server" and rest.startswith(SERVER_NEEDS))
            allowed = allowed and not (part == "agents" and first == "agents")
        else:
            allowed = top != ""
        if not allowed:
            wrong.append(name)
    return wrong


def cache_imports(source: str) -> list[str]:
    """Imports of transformers' cache classes."""
    return [
        name
        for name in imported(source)
        if name.startswith("transformers") and ("cache_utils" in name or "Cache" in name)
    ]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


FILES = [path for path in sorted(ENGINE.rglob("*.py")) if path != ENGINE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_imports_only_what_its_place_allows(path: Path) -> None:
    parts = path.relative_to(ENGINE).parts
    part = parts[0].removesuffix(".py")
    part = "contracts" if part in CONTRACTS or part == "__main__" else part
    assert violations(part, path.read_text(encoding="utf-8")) == []


def test_root_module_imports_contracts_at_once_and_the_rest_on_demand() -> None:
    tree = ast.parse((ENGINE / "__init__.py").read_text(encoding="utf-8"))
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert violations("contracts", ast.unparse(ast.Module(at_once, []))) == []


@pytest.mark.parametrize("path", sorted(INTEGRATIONS.rglob("*.py")), ids=relative)
def test_integration_imports_only_what_its_place_allows(path: Path) -> None:
    place = path.relative_to(INTEGRATIONS).parts
    assert integration_violations(place, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted(TUNING.rglob("*.py")), ids=relative)
def test_tuning_stands_beside_the_integrations(path: Path) -> None:
    assert [name for name in imported(path.read_text(encoding="utf-8")) if name.startswith("eft_integrations")] == []


def test_commands_of_tuning_import_nothing_heavy_before_they_run() -> None:
    code = (
        "import sys, eft_tuning.command, eft_tuning.bake.command; "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("part", "source", "found"),
    [
        ("contracts", "import torch", ["torch"]),
        ("contracts", "from eft_engine.text.prompt import render_prompt", ["eft_engine.text.prompt.render_prompt"]),
        ("text", "def late():\n    import torch", ["torch"]),
        ("text", "from eft_engine.models.loading import Trio", ["eft_engine.models.loading.Trio"]),
        ("decoding", "from eft_engine.text import prompt", ["eft_engine.text.prompt"]),
        ("decoding", "from transformers import AutoModel", ["transformers.AutoModel"]),
        ("models", "from eft_engine.decoding import sampling", ["eft_engine.decoding.sampling"]),
        ("engine", "import transformers.cache_utils", ["transformers.cache_utils"]),
        ("engine", "import eft_engine", ["eft_engine"]),
        ("engine", "from eft_engine import Engine", ["eft_engine.Engine"]),
        ("zoo", "from . import presets", ["..presets"]),
        ("cli", "import requests", ["requests"]),
    ],
)
def test_rule_finds_a_violation(part: str, source: str, found: list[str]) -> None:
    allowed = "import json\nfrom eft_engine.errors import EFTError\n"
    assert violations(part, allowed) == []
    assert violations(part, allowed + source) == found


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        (("langchain", "a.py"), "import eft_engine.engine.engine", ["eft_engine.engine.engine"]),
        (
            ("langchain", "a.py"),
            "from eft_integrations.llama_index import EFTLLM",
            ["eft_integrations.llama_index.EFTLLM"],
        ),
        (("agents", "a.py"), "from eft_integrations.agents.b import B", ["eft_integrations.agents.b.B"]),
        (("backends", "pool.py"), "from eft_engine import Engine", []),
        (("chat", "prompt.py"), "from eft_integrations.backends.pool import p", ["eft_integrations.backends.pool.p"]),
        (("server", "app.py"), "from eft_integrations.server.bodies.protocol import ChatRequest", []),
        (("server", "command.py"), "from eft_integrations.vllm.launch import Command", []),
        (("server", "app.py"), "from eft_integrations.vllm.model import M", ["eft_integrations.vllm.model.M"]),
        (("vllm", "model.py"), "from eft_integrations.server.app import a", ["eft_integrations.server.app.a"]),
        (("langchain", "a.py"), "from eft_integrations.backends.protocol import C\nimport langchain_core", []),
    ],
)
def test_rule_of_integrations_finds_a_violation(place: tuple[str, ...], source: str, found: list[str]) -> None:
    assert integration_violations(place, source) == found


def test_only_two_files_know_the_cache_classes() -> None:
    assert cache_imports("from transformers import DynamicCache") == ["transformers.DynamicCache"]
    knowing = [relative(path) for path in FILES if cache_imports(path.read_text(encoding="utf-8"))]
    assert knowing == ["eft_engine/models/kv_cache.py", "eft_engine/models/layers.py"]


def test_only_one_file_imports_llama_cpp() -> None:
    knowing = [
        relative(path)
        for path in FILES
        if any(name.partition(".")[0] == "llama_cpp" for name in imported(path.read_text(encoding="utf-8")))
    ]
    assert knowing == ["eft_engine/models/llama_cpp/library.py"]


def test_package_contracts_and_text_import_without_torch() -> None:
    text = ", ".join(f"eft_engine.text.{path.stem}" for path in (ENGINE / "text").glob("[!_]*.py"))
    code = f"import sys, eft_engine, {text}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


def test_the_command_line_imports_torch_only_when_it_computes() -> None:
    code = (
        "import sys, eft_engine.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


def test_asking_for_the_engine_imports_torch() -> None:
    code = "import sys, eft_engine; eft_engine.Engine; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "True\n"

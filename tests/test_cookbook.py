"""The cookbook's scripts run and print what their headers promise; their variants for real models run too, up to the weights."""

from __future__ import annotations

import doctest
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from cookbook import notebooks, renew
from eft_engine import Engine, TunedPair
from eft_engine.zoo.presets import atlas
from eft_integrations.backends import pool
from eft_integrations.backends.engine import EngineBackend
from tests.choice import thorough_but
from tests.integrations.server.serving import running

SCRIPTS = renew.scripts()
TRAINS = "03_up_scale_your_own.py"
"""Needs TRL: tests/tuning/test_cookbook.py runs it."""
NEED_SMOLLM2 = {"01_langchain.py", "02_llama_index_rag.py", "12_gguf_rag.py"}
NOT_ATLAS = {"02_llama_index_rag.py", "12_gguf_rag.py", "18_bake.py", TRAINS}
"""Variants for real models that Atlas cannot stand in for here: of SmolLM2, with another vocabulary; of what trains."""
MAX_LINES = 100
"""Without the output in the header."""
HUB = ("Qwen/", "meta-llama/", "HuggingFaceTB/")


def test_every_script_has_a_header_that_says_models_and_output() -> None:
    assert len(SCRIPTS) == 18
    for name, source in SCRIPTS.items():
        output = renew.promised(source)
        assert output, name
        header = source.partition('\n"""\n')[0]
        assert f"python cookbook/{name}" in header, name
        assert "--real" in header, name
        assert "not run here" in header, name
        assert len(source.splitlines()) - len(output) <= MAX_LINES, name


@pytest.mark.parametrize(
    "name",
    thorough_but(
        (
            pytest.param(name, marks=[pytest.mark.smollm2] if name in NEED_SMOLLM2 else [])
            for name in SCRIPTS
            if name != TRAINS
        ),
        often=("01_langchain.py", "09_choose_the_weight.py"),
    ),
)
def test_script_prints_what_its_header_promises(name: str) -> None:
    assert renew.run(name) == renew.promised(SCRIPTS[name])


# ---- real models: the same scripts with `--real`, Atlas in place of what a hub would give ----------------------------------


def stand_in(source: str) -> str:
    """A folder of Atlas for a hub id: by its size and by whether it is tuned. Anything else as it is."""
    if not source.startswith(HUB):
        return source
    if source.endswith("-Instruct"):
        return atlas("assistant").source
    is_large = any(size in source for size in ("-7B", "-8B", "-1.7B"))
    return atlas("base" if is_large else "reference").source


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Sources that were asked for, hub ids among them; what is loaded is Atlas, by an engine of the test's own."""
    ids: list[str] = []
    shared: pool.Pool[str, EngineBackend] = pool.Pool()
    monkeypatch.setattr(pool, "_SHARED", shared)

    def local(source: str) -> str:
        ids.append(source)
        return stand_in(source)

    load, popen = Engine.load, subprocess.Popen

    def load_atlas(base: str, *, pairs: dict[str, TunedPair], **options: Any) -> Engine:
        local_pairs = {
            name: TunedPair(local(pair.tuned.source), local(pair.reference.source)) for name, pair in pairs.items()
        }
        return load(local(getattr(base, "source", base)), pairs=local_pairs, **options)

    monkeypatch.setattr(Engine, "load", load_atlas)
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([local(str(part)) for part in command], **options)
    )
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        pretrained = auto.from_pretrained
        monkeypatch.setattr(
            auto, "from_pretrained", lambda source, _real=pretrained, **o: _real(local(str(source)), **o)
        )
    yield ids
    shared.close()


@pytest.mark.parametrize("name", thorough_but((name for name in SCRIPTS if name not in NOT_ATLAS), often=()))
def test_variant_for_real_models_runs(name: str, asked: list[str]) -> None:
    assert renew.run(name, "--real")
    hub = {source for source in asked if source.startswith(HUB)}
    assert len({source.partition("/")[0] for source in hub}) == 1, "one family"
    assert {stand_in(source) for source in hub} >= {atlas("base").source, atlas("reference").source}


# ---- swapping the model ----------------------------------------------------------------------------------------------------


def test_the_chain_of_another_provider_gives_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(**_atlas_trio()) as engine, running({"gpt-4.1-mini": pool.backend_of(engine)}) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        assert renew.run("07_swap_the_model.py", "openai") == renew.promised(SCRIPTS["07_swap_the_model.py"])


def test_the_chain_ran_with_a_hub_model_before(asked: list[str]) -> None:
    assert renew.run("07_swap_the_model.py", "hugging-face")


def _atlas_trio() -> dict[str, Any]:
    pair = TunedPair(atlas("assistant"), atlas("reference"))
    return {"base": atlas("base"), "pairs": {"assistant": pair}}


# ---- headers and README ----------------------------------------------------------------------------------------------------


def test_examples_of_the_renewing_command_hold() -> None:
    result = doctest.testmod(renew)
    assert (result.failed, result.attempted) == (0, 3)


def test_a_renewed_block_is_read_back_as_it_was_printed() -> None:
    source = '"""Title.\n\nText.\n\nPrints:\n\n    old\n      lines\n"""\n\nprint("Prints:")\n'
    assert renew.promised(source) == ["old", "  lines"]
    lines = ["new", "", '  a \\n and a """', "last"]
    renewed = renew.with_block(source, lines)
    assert renew.promised(renewed) == lines
    assert renewed.endswith('"""\n\nprint("Prints:")\n')
    assert renew.promised('"""Title."""') is None
    with pytest.raises(ValueError, match="Prints"):
        renew.with_block('"""Title."""', lines)


def test_readme_shows_code_and_output_of_the_cookbook() -> None:
    readme = (Path(renew.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = [code for code, _ in renew.SHOWN.findall(readme) if "eft_integrations" in code]
    assert len(shown) == 2
    assert [len(renew.sources_of(code, SCRIPTS)) for code in shown] == [1, 1]
    assert renew.with_outputs(readme, SCRIPTS) == readme


def test_notebooks_show_the_scripts_as_they_are() -> None:
    assert doctest.testmod(notebooks).failed == 0
    shown = {path.name: path.read_text(encoding="utf-8") for path in notebooks.FOLDER.glob("*.ipynb")}
    written = {
        notebooks.path_of(name).name: notebooks.rendered(name, source, renew.promised(source) or [])
        for name, source in SCRIPTS.items()
    }
    assert shown == written, "python -m cookbook.renew writes them"


def test_readme_lists_every_script() -> None:
    readme = renew.README.read_text(encoding="utf-8")
    assert [name for name in SCRIPTS if f"cookbook/{name}" not in readme] == []


def test_outputs_in_the_readme_are_renewed_by_the_code_above_them() -> None:
    sources = {"01_a.py": '"""A.\n\nPrints:\n\n    new\n"""\nx = 1\nprint(x)\n', "02_b.py": '"""B."""\ny = 2\n'}
    readme = "```python\nprint(x)\n```\n\n```text\nold\n```\n\n```python\ny = 2\n```\n\n```text\nkept\n```\n"
    assert renew.with_outputs(readme, sources) == readme.replace("old", "new")

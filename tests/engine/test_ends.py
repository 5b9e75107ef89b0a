"""Texts end where any member's files say that they do, and what says otherwise, or nothing at all, is told at load.

The situations are folders as people save them: the same tiny model with other configurations, tokenizers and templates beside it.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, TunedPair
from eft_engine.errors import CorruptWeightsError, VocabularyMismatchError
from eft_engine.models.planning import inspect_trio
from eft_engine.outputs import TurnEnd
from tests import toy
from tests.gguf_files import write_gguf
from tests.toy import END_ID, VOCAB_SIZE, make_model, make_tokenizer, save_adapter

BYTE, OTHER_BYTE = 65, 66
TEXT_END, START, TURN_END, CALL_END = range(VOCAB_SIZE, VOCAB_SIZE + 4)
TOKENS = {TEXT_END: "<|endoftext|>", START: "<|im_start|>", TURN_END: "<|im_end|>", CALL_END: "<|call_end|>"}
"""Control tokens of every tokenizer here."""

TURNS = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
CHATML = TURNS + "<|im_end|>\n{% endfor %}"
CONFIG = EngineConfig(runtime="torch", device="cpu", dtype="float32", self_check=False, show_progress=False)
FORCED = SamplingParams(max_tokens=3, temperature=0.0)

ABSENT: Any = object()


@dataclass(frozen=True)
class Files:
    """What a member's folder says. `generation` and `config` are `eos_token_id` there, and `ABSENT` is no such file or key."""

    generation: Any = ABSENT
    config: Any = None
    tokenizer: int | None = None
    template: str | None = CHATML
    derived: bool = False
    """Whether the generation configuration was made out of the configuration."""


@dataclass(frozen=True)
class Situation:
    """What members say, and where texts are to end.

    `unused` are ids that are named and end nothing. `warning` is part of what loading warns about, None: it does not.
    """

    tuned: Files
    ends: set[int]
    base: Files = field(default_factory=Files)
    unused: set[int] = field(default_factory=set)
    warning: str | None = None


IN_TEMPLATE_ALONE = f"ends an answer with '<|im_end|>' ({TURN_END}), and the tokens that end a text are "
SITUATIONS = {
    "generation configuration": Situation(Files(generation=TURN_END), {TURN_END}),
    "generation configuration, a list": Situation(Files(generation=[TURN_END, CALL_END]), {TURN_END, CALL_END}),
    "generation configuration without ends": Situation(Files(generation=None, config=TURN_END), {TURN_END}),
    "configuration": Situation(Files(config=TURN_END), {TURN_END}),
    "configuration, a list": Situation(Files(config=[TEXT_END, TURN_END]), {TEXT_END, TURN_END}),
    "tokenizer": Situation(Files(tokenizer=TURN_END), {TURN_END}),
    "template": Situation(Files(), set(), warning=IN_TEMPLATE_ALONE + "none"),
    "generation configuration and tokenizer": Situation(
        Files(generation=TEXT_END, tokenizer=TURN_END), {TEXT_END, TURN_END}
    ),
    "configuration and tokenizer": Situation(Files(config=TEXT_END, tokenizer=TURN_END), {TEXT_END, TURN_END}),
    "all three differ": Situation(
        Files(generation=[TEXT_END], config=CALL_END, tokenizer=TURN_END), {TEXT_END, CALL_END, TURN_END}
    ),
    "all three agree": Situation(Files(generation=[TURN_END], config=TURN_END, tokenizer=TURN_END), {TURN_END}),
    "base alone": Situation(Files(), {TURN_END}, base=Files(generation=TURN_END)),
    "tokenizer of the base alone": Situation(Files(), {TURN_END}, base=Files(tokenizer=TURN_END)),
    "base ends texts, the tuned tokenizer turns": Situation(
        Files(tokenizer=TURN_END), {TEXT_END, TURN_END}, base=Files(generation=TEXT_END, config=TEXT_END)
    ),
    "the template has another end than all files": Situation(
        Files(generation=TEXT_END), {TEXT_END}, warning=IN_TEMPLATE_ALONE + f"'<|endoftext|>' ({TEXT_END}):"
    ),
    "the template of the base does not count": Situation(
        Files(tokenizer=TEXT_END, template=TURNS + "<|endoftext|>{% endfor %}"), {TEXT_END}
    ),
    "the template has an inner end": Situation(
        Files(tokenizer=TURN_END, template=TURNS + "<|call_end|><|im_end|>{% endfor %}"), {TURN_END}
    ),
    "the template ends answers with a thought otherwise": Situation(
        Files(
            tokenizer=TURN_END,
            template=TURNS + "{{ '<|im_end|>' if message.thinking else '<|call_end|>' }}{% endfor %}",
        ),
        {TURN_END},
    ),
    "the template ends with text": Situation(
        Files(tokenizer=TEXT_END, template=TURNS + "<|stop|>\n{% endfor %}"),
        {TEXT_END},
        warning="ends an answer with '<|stop|>', which is no token of the tokenizer",
    ),
    "the template ends with nothing": Situation(
        Files(tokenizer=TEXT_END, template=TURNS + "\n{% endfor %}"), {TEXT_END}
    ),
    "the template takes no answer at the end": Situation(
        Files(tokenizer=TEXT_END, template="{{ raise_exception('no') if messages[-1].role == 'assistant' }}"),
        {TEXT_END},
    ),
    "the template wants a system turn": Situation(
        Files(tokenizer=TEXT_END, template="{{ raise_exception('no') if messages[0].role != 'system' }}" + CHATML),
        {TEXT_END},
        warning=IN_TEMPLATE_ALONE + f"'<|endoftext|>' ({TEXT_END}):",
    ),
    "the template drops answers": Situation(Files(tokenizer=TEXT_END, template="<|im_start|>"), {TEXT_END}),
    "no template": Situation(Files(tokenizer=TEXT_END, template=None), {TEXT_END}),
    "no template and no end": Situation(
        Files(template=None), set(), warning="no member names a token that ends a text"
    ),
    "a default of the configuration's class": Situation(
        Files(config=BYTE, tokenizer=TURN_END), {TURN_END}, unused={BYTE}
    ),
    "a default that became a generation configuration": Situation(
        Files(generation=BYTE, config=BYTE, tokenizer=TURN_END, derived=True), {TURN_END}, unused={BYTE}
    ),
    "a default, and nothing else": Situation(Files(config=BYTE, template=None), {BYTE}),
    "ordinary text, on purpose": Situation(Files(generation=[BYTE, TURN_END]), {BYTE, TURN_END}),
    "ordinary text, on purpose, in both": Situation(
        Files(generation=BYTE, config=BYTE, tokenizer=TURN_END), {BYTE, TURN_END}
    ),
    "ordinary text, on purpose, behind a default": Situation(
        Files(generation=BYTE, config=TURN_END, derived=True), {BYTE, TURN_END}
    ),
    "beyond the vocabulary": Situation(Files(generation=[TURN_END, 9999]), {TURN_END}, unused={9999}),
    "no id": Situation(Files(generation=[-1, TURN_END]), {TURN_END}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a tokenizer that name no end."""
    folder = tmp_path_factory.mktemp("saved")
    make_model("llama", hidden_size=16, num_layers=1, vocab_size=VOCAB_SIZE + len(TOKENS)).save_pretrained(folder)
    tokenizer = make_tokenizer(chat=False, extra_tokens=tuple(TOKENS.values()))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, files: Files) -> Path:
    """Let a member's folder say what a situation wants."""
    change(folder / "config.json", eos_token_id=files.config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if files.generation is not ABSENT:
        write_generation_config(folder, files)
    write_tokenizer(folder, files)
    return folder


def write_generation_config(folder: Path, files: Files) -> None:
    values = {"eos_token_id": files.generation} | ({"_from_model_config": True} if files.derived else {})
    (folder / "generation_config.json").write_text(json.dumps(values), encoding="utf-8")


def write_tokenizer(folder: Path, files: Files) -> None:
    if files.tokenizer is not None:
        change(folder / "tokenizer_config.json", eos_token=TOKENS[files.tokenizer])
    if files.template is not None:
        (folder / "chat_template.jinja").write_text(files.template, encoding="utf-8")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def ends_with(engine: Engine, token_id: int) -> bool:
    """Whether a text ends when the model writes this token."""
    forced = FORCED.model_copy(update={"logit_bias": {token_id: 1e6}})
    out = engine.generate("a", sampling=forced)
    assert out.token_ids[0] == token_id
    return (out.finish_reason, out.stop_reason, len(out.token_ids)) == ("stop", token_id, 1)


def used(ends: tuple[TurnEnd, ...]) -> set[int]:
    return {end.token_id for end in ends if end.unused is None}


def check_ends(engine: Engine, ends: set[int]) -> None:
    assert {token_id for token_id in (BYTE, OTHER_BYTE, END_ID, *TOKENS) if ends_with(engine, token_id)} == ends


@pytest.mark.only_torch
@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    situation = SITUATIONS[name]
    base = write(shutil.copytree(saved, tmp_path / "base"), situation.base)
    tuned = write(shutil.copytree(saved, tmp_path / "tuned"), situation.tuned)
    pairs = {"chat": TunedPair(tuned=str(tuned), reference=str(base))}
    with caplog.at_level(logging.WARNING, "eft_engine"), Engine.load(str(base), pairs=pairs, config=CONFIG) as engine:
        report = engine.report()
        check_ends(engine, situation.ends)
    assert used(report.ends) == situation.ends
    assert {end.token_id for end in report.ends if end.unused} == situation.unused
    assert report == inspect_trio(str(base), pairs, CONFIG)
    assert tuple(record.message for record in caplog.records) == report.warnings
    assert len(report.warnings) == (situation.warning is not None)
    assert (situation.warning or "") in "".join(report.warnings)


ADAPTERS = {
    "nothing beside it": (Files(template=None), {TEXT_END}, None),
    "a tokenizer and a template": (Files(tokenizer=TURN_END), {TEXT_END, TURN_END}, None),
    "a tokenizer without a template": (Files(tokenizer=TURN_END, template=None), {TEXT_END, TURN_END}, None),
    "a generation configuration": (Files(generation=[TURN_END], template=None), {TEXT_END, TURN_END}, None),
    "a template, and a generation configuration that agrees": (Files(generation=TURN_END), {TEXT_END, TURN_END}, None),
    "a template that no file agrees with": (Files(), {TEXT_END}, IN_TEMPLATE_ALONE + f"'<|endoftext|>' ({TEXT_END}):"),
}


@pytest.mark.only_torch
@pytest.mark.parametrize("beside", ADAPTERS)
def test_adapter_ends_as_its_folder_says_and_its_model_does(beside: str, saved: Path, tmp_path: Path) -> None:
    files, ends, warning = ADAPTERS[beside]
    reference = write(shutil.copytree(saved, tmp_path / "reference"), Files(tokenizer=TEXT_END, template=None))
    adapter = save_adapter(LlamaForCausalLM.from_pretrained(saved), tmp_path / "adapter", seed=1)
    if files.tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(saved / name, adapter)
    if files.generation is not ABSENT:
        write_generation_config(adapter, files)
    write_tokenizer(adapter, files)
    pairs = {"chat": TunedPair(tuned=str(adapter), reference=str(reference))}
    with Engine.load(str(reference), pairs=pairs, config=CONFIG) as engine:
        check_ends(engine, ends)
        report = engine.report()
    assert used(report.ends) == ends
    assert len(report.warnings) == (warning is not None)
    assert (warning or "") in "".join(report.warnings)


@pytest.mark.only_torch
def test_every_pair_counts(saved: Path, tmp_path: Path) -> None:
    says = {
        "base": Files(tokenizer=TEXT_END),
        "first": Files(tokenizer=TEXT_END, template=None),
        "second": Files(tokenizer=TURN_END),
        "reference": Files(generation=CALL_END),
    }
    folders = {name: str(write(shutil.copytree(saved, tmp_path / name), files)) for name, files in says.items()}
    pairs = {name: TunedPair(tuned=folders[name], reference=folders["reference"]) for name in ("first", "second")}
    with Engine.load(folders["base"], pairs=pairs, config=CONFIG) as engine:
        check_ends(engine, {TEXT_END, TURN_END, CALL_END})
        named_by = {end.token_id: dict(end.named_by) for end in engine.report().ends}
    assert named_by == {
        TEXT_END: {"base": ("tokenizer",), "first.tuned": ("tokenizer",)},
        TURN_END: {"second.tuned": ("tokenizer",)},
        CALL_END: dict.fromkeys(("first.reference", "second.reference"), ("generation_config.json",)),
    }


@pytest.mark.only_torch
@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "<|im_end|>"}', '{"eos_token_id": [true]}'])
def test_generation_configuration_that_cannot_be_meant_is_refused(content: str, saved: Path, tmp_path: Path) -> None:
    folder = write(shutil.copytree(saved, tmp_path / "base"), Files())
    (folder / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorruptWeightsError, match=r"base: .*generation_config\.json"):
        inspect_trio(str(folder), {}, CONFIG)


@pytest.mark.only_torch
@pytest.mark.parametrize("says", ["generation configuration", "configuration", "tokenizer"])
def test_loaded_models_end_as_they_say(says: str) -> None:
    model, tokenizer = make_model("llama", hidden_size=16, num_layers=1), make_tokenizer()
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token = None
    match says:
        case "generation configuration":
            model.generation_config.eos_token_id = [END_ID, BYTE]
        case "configuration":
            model.config.eos_token_id = [END_ID, BYTE]
        case "tokenizer":
            tokenizer.eos_token = "<|end|>"
    with Engine.from_models(model, tokenizer=tokenizer, config=CONFIG) as engine:
        assert [ends_with(engine, token_id) for token_id in (END_ID, BYTE, OTHER_BYTE)] == [
            True,
            says != "tokenizer",
            False,
        ]


@pytest.mark.only_torch
def test_loaded_models_without_an_end_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = make_model("llama", hidden_size=16, num_layers=1), make_tokenizer()
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token = None
    with caplog.at_level(logging.WARNING, "eft_engine"), Engine.from_models(model, tokenizer=tokenizer, config=CONFIG):
        pass
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        f"the chat template ends an answer with '<|end|>' ({END_ID}), and the tokens that end a text are none"
    ]


GGUF_FILES = {
    "eos": ({"tokenizer.ggml.eos_token_id": BYTE}, {BYTE, END_ID, TURN_END, TEXT_END}),
    "eot": (
        {"tokenizer.ggml.eos_token_id": END_ID, "tokenizer.ggml.eot_token_id": CALL_END},
        {END_ID, CALL_END, TURN_END, TEXT_END},
    ),
    "eom": (
        {"tokenizer.ggml.eos_token_id": END_ID, "tokenizer.ggml.eom_token_id": CALL_END},
        {END_ID, CALL_END, TURN_END, TEXT_END},
    ),
    "none but known texts": ({}, {END_ID, TURN_END, TEXT_END}),
}


@pytest.mark.parametrize("says", GGUF_FILES)
def test_gguf_files_end_as_in_llama_cpp(says: str, tmp_path: Path) -> None:
    changes, ends = GGUF_FILES[says]
    model = make_model("llama", num_layers=1, vocab_size=VOCAB_SIZE + len(TOKENS))
    tokenizer = make_tokenizer(extra_tokens=tuple(TOKENS.values()))
    path = write_gguf(model, tokenizer, tmp_path / "m.gguf", changes={"tokenizer.ggml.eos_token_id": None} | changes)
    config = CONFIG.model_copy(update={"runtime": toy.RUNTIME})
    report = inspect_trio(str(path), {}, config)
    assert used(report.ends) == ends
    with Engine.load(str(path), config=config) as engine:
        check_ends(engine, ends)


@pytest.mark.only_torch
@pytest.mark.parametrize(
    ("of_base", "refused"),
    [
        ((), r"chat\.tuned ends its texts with '<\|im_end\|>'"),
        (("<|reserved|>", "<|stop|>"), r"mean different tokens: .*<\|reserved\|>"),
    ],
)
def test_tokens_that_only_the_tuned_model_has(
    of_base: tuple[str, ...], refused: str, saved: Path, tmp_path: Path
) -> None:
    """ChatML on an older base: refused as it is, and kept on request. Then texts end where those of the tuned model do, and where
    those of the base do, unless its end is another token now.
    """
    base = tmp_path / "base"
    make_model("llama", hidden_size=16, num_layers=1, vocab_size=VOCAB_SIZE + len(of_base)).save_pretrained(base)
    write_generation_config(base, Files(generation=[END_ID, START]))
    change(base / "config.json", eos_token_id=None)
    make_tokenizer(chat=False, extra_tokens=of_base).save_pretrained(base)
    tuned = write(shutil.copytree(saved, tmp_path / "tuned"), Files(tokenizer=TURN_END))
    pairs = {"chat": TunedPair(tuned=str(tuned), reference=str(base))}
    with pytest.raises(VocabularyMismatchError, match=refused):
        inspect_trio(str(base), pairs, CONFIG)
    config = CONFIG.model_copy(update={"tuned_only_tokens": "keep"})
    with Engine.load(str(base), pairs=pairs, config=config) as engine:
        check_ends(engine, {END_ID, TURN_END})
        ends = {end.token_id: (end.token, end.unused is None) for end in engine.report().ends}
    assert ends == {END_ID: ("<|end|>", True), START: ("<|im_start|>", False), TURN_END: ("<|im_end|>", True)}


@pytest.mark.only_torch
@pytest.mark.parametrize(
    ("rows", "advice"),
    [(VOCAB_SIZE + 2, "tuned_only_tokens='keep'"), (VOCAB_SIZE, "no model of the trio has such a token")],
    ids=["only the tuned model has it", "only the tokenizer has it"],
)
def test_what_helps_is_said_of_an_end_that_is_never_generated(rows: int, advice: str) -> None:
    """The tuned tokenizer has ChatML's tokens and names another end, so that nothing is refused."""
    tokenizer = make_tokenizer(extra_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    plain, tuned = (make_model("llama", hidden_size=16, num_layers=1, vocab_size=size) for size in (VOCAB_SIZE, rows))
    named = {"base": make_tokenizer(), "chat.tuned": tokenizer, "chat.reference": make_tokenizer()}
    with Engine.from_models(plain, tokenizer=named, pairs={"chat": LoadedPair(tuned, plain)}, config=CONFIG) as engine:
        (warning,) = engine._trio.ends.warnings
    assert "ends an answer with '<|im_end|>' (261)" in warning
    assert advice in warning
    assert "stop_token_ids" not in warning

"""What is particular to networks in llama.cpp: adapters, room that grows, windows and states, files in parts, mixed runtimes."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from eft_engine import (
    CompositionOptions,
    Engine,
    EngineConfig,
    LlamaCppOptions,
    MemberConfig,
    PromptPair,
    SamplingParams,
    SpeculationOptions,
    Term,
    TunedPair,
    inspect_trio,
)
from eft_engine.errors import (
    EngineStepError,
    InvalidOptionError,
    LoadOutOfMemoryError,
    NonFiniteLogitsError,
    UnsupportedAdapterError,
    UnsupportedModelError,
)
from eft_engine.models.gguf_file import read_gguf
from eft_engine.models.llama_cpp import cache, library
from eft_engine.models.llama_cpp.adapter_file import write_gguf_adapter
from eft_engine.models.llama_cpp.context import LlamaCppContext
from eft_engine.models.llama_cpp.network import LlamaCppNetwork
from tests.engine.slow_loop import Draw, Judge, slow_loop
from tests.gguf_files import StoredTensor, gguf_contents, write_gguf, write_split
from tests.llama_cpp_trios import EXACT, LlamaCppTrio, make_llama_cpp_trio
from tests.toy import ToyTrio, make_model, make_tokenizer, naive_greedy, save_adapter, wait_until_idle

pytestmark = pytest.mark.only_llama_cpp

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
CONFIG = EngineConfig(llama_cpp=EXACT)
PROMPTS = ["A", "The sky is", "Once upon a time there was", "0123456789" * 4]


@pytest.fixture(scope="module")
def trio() -> LlamaCppTrio:
    """A llama trio."""
    return make_llama_cpp_trio("llama")


def expected(trio: ToyTrio, prompt: str, *, weight: float = 1.0, max_tokens: int = 20) -> list[int]:
    """What the loop of three models says."""
    ids = trio.tokenizer.encode(prompt)
    return naive_greedy(trio, ids, weight=weight, max_tokens=max_tokens, stop_at_end=False)


@pytest.mark.parametrize("kind", ["peft", "gguf"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_adapter_on_the_reference_shares_its_weights(tmp_path: Path, architecture: str, kind: str) -> None:
    made = make_llama_cpp_trio(architecture)
    folder = save_adapter(made.reference, tmp_path / "adapter", seed=7)
    tuned = PeftModel.from_pretrained(copy.deepcopy(made.reference), folder).eval()
    judge = ToyTrio(made.base, tuned, made.reference, made.tokenizer)
    source = folder
    if kind == "gguf":
        model = read_gguf(made.files.reference, member="x")
        source = write_gguf_adapter(folder, tmp_path / "adapter.gguf", model=model, member="x")
    pair = TunedPair(tuned=str(source), reference=str(made.files.reference))
    with Engine.load(str(made.files.base), pairs={"chat": pair}, config=CONFIG) as engine:
        for prompt in PROMPTS:
            answer = engine.generate(prompt, sampling=GREEDY)
            assert list(answer.token_ids) == expected(judge, prompt)
        report = engine.report()
        assert [member.runtime for member in report.members] == ["llama.cpp"] * 3
        assert report.members[1].network == report.members[2].network
        assert report.members[1].adapter_bytes > 0
        networks = [member.network for member in engine._trio.members.values()]
        assert networks[1] is not networks[2]
        assert networks[1]._weights is networks[2]._weights  # type: ignore[attr-defined]


def test_two_adapters_on_one_file_are_two_behaviours(trio: LlamaCppTrio, tmp_path: Path) -> None:
    folders = [save_adapter(trio.reference, tmp_path / str(seed), seed=seed) for seed in (7, 8)]
    pairs = {
        f"pair_{index}": TunedPair(tuned=str(folder), reference=str(trio.files.reference))
        for index, folder in enumerate(folders)
    }
    with Engine.load(str(trio.files.base), pairs=pairs, config=CONFIG) as engine:
        for index, folder in enumerate(folders):
            tuned = PeftModel.from_pretrained(copy.deepcopy(trio.reference), folder).eval()
            judge = ToyTrio(trio.base, tuned, trio.reference, trio.tokenizer)
            weights = {"pair_0": 0.0, "pair_1": 0.0, f"pair_{index}": 1.0}
            answer = engine.generate(PROMPTS[2], sampling=GREEDY, reward_weights=weights)
            assert list(answer.token_ids) == expected(judge, PROMPTS[2])


def test_runtimes_mix(trio: LlamaCppTrio, tmp_path: Path) -> None:
    for name, model in (("tuned", trio.tuned), ("reference", trio.reference)):
        model.save_pretrained(tmp_path / name)
        trio.tokenizer.save_pretrained(tmp_path / name)
    pair = TunedPair(tuned=str(tmp_path / "tuned"), reference=str(tmp_path / "reference"))
    with Engine.load(str(trio.files.base), pairs={"chat": pair}, config=CONFIG) as engine:
        assert [member.runtime for member in engine.report().members] == ["llama.cpp", "torch", "torch"]
        answers = engine.generate(PROMPTS, sampling=GREEDY)
        assert [list(answer.token_ids) for answer in answers] == [expected(trio, prompt) for prompt in PROMPTS]


def test_file_in_parts_is_one_model(trio: LlamaCppTrio, tmp_path: Path) -> None:
    whole = tmp_path / "base.gguf"
    whole.write_bytes(trio.files.base.read_bytes())
    parts = write_split(whole, 3)
    whole.unlink()
    for source in (str(parts[0]), str(tmp_path)):  # the first part, or the folder that holds nothing else
        with Engine.load(source, config=CONFIG) as engine:
            answer = engine.generate(PROMPTS[1], sampling=GREEDY)
            assert list(answer.token_ids) == expected(trio, PROMPTS[1], weight=0.0)


def test_room_grows_with_what_is_asked() -> None:
    made = make_llama_cpp_trio("qwen2", context_len=2048)
    long = "0123456789" * 60
    with made.engine(max_num_seqs=4) as engine:
        before = engine.stats().kv_cache_bytes
        answers = engine.generate([long, "ab", long[1:], "A"], sampling=GREEDY)
        assert engine.stats().kv_cache_bytes > before
        for prompt, answer in zip([long, "ab", long[1:], "A"], answers, strict=True):
            assert list(answer.token_ids) == expected(made, prompt)


def test_budget_bounds_the_room() -> None:
    made = make_llama_cpp_trio("llama", context_len=2048)
    with made.engine() as engine:
        start = engine.stats().kv_cache_bytes
    with made.engine(max_kv_cache_bytes=3 * start, max_num_seqs=4) as engine:
        prompts = ["0123456789" * 30 + str(number) for number in range(6)]
        answers = engine.generate(prompts, sampling=GREEDY)
        assert engine.stats().kv_cache_bytes <= 3 * start
        assert [list(answer.token_ids) for answer in answers] == [expected(made, prompt) for prompt in prompts]


def test_more_slots_than_rows_of_logits() -> None:
    """llama.cpp asserts, and so ends the process, when it has sequences for which there is no row."""
    made = make_llama_cpp_trio("llama")
    with made.engine(max_num_seqs=70, speculation=SpeculationOptions(max_draft_tokens=1)) as engine:
        answers = engine.generate(["A"] * 70, sampling=SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        assert [list(answer.token_ids) for answer in answers] == [expected(made, "A", max_tokens=2)] * 70


def test_who_finds_no_sequence_waits() -> None:
    made = make_llama_cpp_trio("llama")
    with made.engine(max_num_seqs=300, max_warm_prefixes=0) as engine:
        answers = engine.generate(["A"] * 300, sampling=SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        assert {tuple(answer.token_ids) for answer in answers} == {tuple(expected(made, "A", max_tokens=2))}


@pytest.mark.parametrize("architecture", ["lfm2", "falcon_h1"])
def test_states_go_on_where_a_conversation_ended_and_nowhere_else(architecture: str) -> None:
    made = make_llama_cpp_trio(architecture)
    prompt = "You are a helpful assistant that answers briefly."
    with made.engine() as engine:
        first = engine.generate(prompt, sampling=GREEDY)
        assert list(first.token_ids) == expected(made, prompt)
        # The last token was never read, so the slot ends before it.
        longer = engine.generate(prompt + made.tokenizer.decode(first.token_ids) + "?", sampling=GREEDY)
        inside = engine.generate(prompt[:30] + "!", sampling=GREEDY)
        again = engine.generate(prompt, sampling=GREEDY)
    assert longer.usage.cached_prompt_tokens in (0, len(prompt) + 19)
    assert inside.usage.cached_prompt_tokens == 0
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("num_drafts", [1, 4, 20])
@pytest.mark.parametrize("architecture", ["lfm2", "falcon_h1", "gemma3"])
def test_drafts_that_were_wrong_leave_no_trace(architecture: str, num_drafts: int) -> None:
    made = make_llama_cpp_trio(architecture)
    speculation = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=num_drafts)
    sampling = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with made.engine(speculation=speculation) as engine:
        answers = engine.generate(PROMPTS, sampling=sampling, reward_weights=-1.0)
        stats = engine.stats()
    assert stats.num_drafted > stats.num_accepted or architecture == "gemma3"  # whose toys agree on their texts
    judged = [expected(made, prompt, weight=-1.0, max_tokens=40) for prompt in PROMPTS]
    assert [list(answer.token_ids) for answer in answers] == judged


def test_prefix_beyond_a_window_is_read_again_where_its_cells_were_taken() -> None:
    made = make_llama_cpp_trio("gemma3")
    first = "You are a helpful assistant that answers briefly. "
    others = [f"{number} is another text that takes the cells which no window reaches" for number in range(6)]
    with made.engine(max_warm_prefixes=8) as engine:
        engine.generate(first + "What is a mill?", sampling=GREEDY)
        for other in others:
            engine.generate(other, sampling=GREEDY)
        answer = engine.generate(first + "How does it turn?", sampling=GREEDY)
    assert list(answer.token_ids) == expected(made, first + "How does it turn?")


@pytest.mark.parametrize(
    "options",
    [
        {"cache_type_k": "bf16", "cache_type_v": "f16"},
        {"n_threads": 2, "n_threads_batch": 1, "n_ubatch": 32},
        {"use_mmap": False, "check_tensors": False, "flash_attention": True},
        {"n_gpu_layers": 0},
    ],
    ids=str,
)
def test_options_reach_llama_cpp(trio: LlamaCppTrio, options: dict[str, object]) -> None:
    with trio.engine(llama_cpp=LlamaCppOptions.model_validate({"n_ctx": 512, **options})) as engine:
        assert len(engine.generate(PROMPTS[3], sampling=GREEDY).token_ids) == 20
        assert engine.report().members[0].is_mapped == options.get("use_mmap", True)


def test_log_of_llama_cpp_is_ours(trio: LlamaCppTrio) -> None:
    """In a process of its own: pytest captures file descriptors."""
    code = f"""
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
from eft_engine import Engine
Engine.load({str(trio.files.base)!r}).close()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "eft_engine.models.llama_cpp.library llama_context" in ran.stdout
    assert ran.stderr == ""


@pytest.mark.parametrize(("max_context_len", "kind"), [(256, "short"), (None, "long")])
def test_rotary_factors_do_not_change_with_the_room(tmp_path: Path, max_context_len: int | None, kind: str) -> None:
    """llama.cpp takes factors for long texts as soon as it has room for them; room for others must not change a text."""
    model = make_model("phi3", hidden_size=64, context_len=2048)
    contents = gguf_contents(model, make_tokenizer())
    for name, factor in (("short", 1.0), ("long", 8.0)):
        values = np.full(8, factor, dtype=np.float32)
        contents = contents.with_added(StoredTensor(f"rope_factors_{name}.weight", (8,), 0, values.tobytes()))
    keys = {"phi3.rope.scaling.original_context_length": 256, "phi3.context_length": 2048}
    path = contents.with_keys(keys).write(tmp_path / "model.gguf")
    texts = []
    for n_ctx in (256, 1024):
        config = EngineConfig(llama_cpp=EXACT.model_copy(update={"n_ctx": n_ctx}), max_context_len=max_context_len)
        with Engine.load(str(path), config=config) as engine:
            texts.append([out.token_ids for out in engine.generate([PROMPTS[3] * 3] * 6, sampling=GREEDY)])
            assert any(f"factors for {kind} texts" in note for note in engine.report().members[0].notes)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 1


# ---- which runtime -----------------------------------------------------------------------------------------------------


def test_auto_takes_llama_cpp_for_files_and_torch_for_folders(trio: LlamaCppTrio, tmp_path: Path) -> None:
    trio.reference.save_pretrained(tmp_path)
    trio.tokenizer.save_pretrained(tmp_path)
    report = inspect_trio(str(trio.files.base), {"chat": TunedPair(str(tmp_path), str(tmp_path))})
    assert [member.runtime for member in report.members] == ["llama.cpp", "torch", "torch"]
    base = report.members[0]
    assert (base.dtype, base.is_mapped, base.architecture) == ("F32", True, "llama")
    assert report.mapped_bytes == base.parameter_bytes
    assert "threads" in base.notes[0]


def test_states_are_told(tmp_path: Path) -> None:
    made = make_llama_cpp_trio("lfm2")
    assert any("keep a state" in note for note in inspect_trio(str(made.files.base), {}).members[0].notes)


def test_torch_can_be_asked_for(trio: LlamaCppTrio, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(runtime="torch", dtype="float32")
    with caplog.at_level(logging.WARNING), Engine.load(str(trio.files.base), config=config) as engine:
        assert engine.report().members[0].runtime == "torch"
        answer = engine.generate(PROMPTS[1], sampling=GREEDY)
        assert list(answer.token_ids) == expected(trio, PROMPTS[1], weight=0.0)
    assert caplog.records == []


def test_who_asks_for_torch_is_not_told_of_llama_cpp(trio: LlamaCppTrio, caplog: pytest.LogCaptureFixture) -> None:
    """Nor warned of the dtype that was chosen, which `eft inspect` tells."""
    with caplog.at_level(logging.WARNING):
        report = inspect_trio(str(trio.files.base), {}, EngineConfig(runtime="torch"))
    assert "in bfloat16" in report.members[0].notes[0]
    assert caplog.records == []


def test_one_line_says_what_would_be_faster(
    trio: LlamaCppTrio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_engine.models.network_plans.why_unavailable", lambda: "it is not installed")
    with caplog.at_level(logging.WARNING):
        report = inspect_trio(str(trio.files.base), {}, EngineConfig(dtype="float32"))
    assert report.members[0].runtime == "torch"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "runs in torch, since it is not installed" in line
    assert "eft-engine[llama-cpp]" in line
    with pytest.raises(UnsupportedModelError, match="was asked for and it is not installed"):
        inspect_trio(MemberConfig(source=str(trio.files.base), runtime="llama.cpp"), {})


def test_what_llama_cpp_cannot_do_is_refused(trio: LlamaCppTrio, tmp_path: Path) -> None:
    trio.reference.save_pretrained(tmp_path)
    trio.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"is no \.gguf file"):
        inspect_trio(MemberConfig(source=str(tmp_path), runtime="llama.cpp"), {})
    with pytest.raises(InvalidOptionError, match="device is for torch"):
        inspect_trio(MemberConfig(source=str(trio.files.base), runtime="llama.cpp", device="cpu"), {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_type_k": "q8_0"}, "blocks of 32"),
        ({"cache_type_v": "q4_0"}, "blocks of 32"),
    ],
)
def test_types_that_do_not_fit_are_refused(trio: LlamaCppTrio, options: dict[str, object], words: str) -> None:
    config = EngineConfig(llama_cpp=LlamaCppOptions.model_validate(options))
    with pytest.raises(InvalidOptionError, match=words):
        inspect_trio(str(trio.files.base), {}, config)


def test_adapter_of_llama_cpp_is_none_for_torch(trio: LlamaCppTrio, tmp_path: Path) -> None:
    folder = save_adapter(trio.reference, tmp_path / "adapter", seed=7)
    model = read_gguf(trio.files.reference, member="x")
    adapter = write_gguf_adapter(folder, tmp_path / "adapter.gguf", model=model, member="x")
    pair = TunedPair(tuned=str(adapter), reference=MemberConfig(source=str(trio.files.reference), runtime="torch"))
    with pytest.raises(UnsupportedAdapterError, match=r"an adapter in llama\.cpp's format"):
        inspect_trio(str(trio.files.base), {"chat": pair})


def test_quantised_files_are_held_as_they_are(tmp_path: Path) -> None:
    model, tokenizer = make_model("qwen2", hidden_size=64), make_tokenizer()
    sizes = {}
    for file_type in ("F32", "Q8_0"):
        path = write_gguf(model, tokenizer, tmp_path / f"{file_type}.gguf", file_type=file_type)
        report = inspect_trio(str(path), {})
        assert report.members[0].dtype == file_type
        sizes[file_type] = report.total_bytes
        with Engine.load(str(path)) as engine:
            assert len(engine.generate("A", sampling=GREEDY).token_ids) == 20
    assert sizes["Q8_0"] < 0.4 * sizes["F32"]


# ---- when something fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "lfm2", "gemma3"])
def test_pass_that_failed_leaves_no_trace(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_llama_cpp_trio(architecture)
    decode, failing = LlamaCppContext.decode, [3, 9]

    def sometimes(self: LlamaCppContext, token_ids: list[int], *rest: list[int]) -> torch.Tensor | None:
        failing[:] = [number - 1 for number in failing]
        rows = decode(self, token_ids, *rest)  # llama.cpp may have read them all
        if 0 in failing:
            raise RuntimeError("llama.cpp could not read 1 tokens (code -3)")
        return rows

    with made.engine() as engine:
        monkeypatch.setattr(LlamaCppContext, "decode", sometimes)
        for _ in range(2):
            with pytest.raises(EngineStepError, match="code -3"):
                engine.generate(PROMPTS[1], sampling=GREEDY)
        answers = engine.generate(PROMPTS, sampling=GREEDY)
    assert [list(answer.token_ids) for answer in answers] == [expected(made, prompt) for prompt in PROMPTS]


def test_values_that_are_not_finite_fail_their_request_and_are_not_kept(
    trio: LlamaCppTrio, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, spoilt = LlamaCppNetwork._decode, [False]

    def sometimes(self: LlamaCppNetwork, *arguments: list[int]) -> torch.Tensor:
        rows = forward(self, *arguments)
        return torch.full_like(rows, torch.nan) if spoilt[0] else rows

    monkeypatch.setattr(LlamaCppNetwork, "_decode", sometimes)
    with trio.engine() as engine:
        before = engine._trio.networks[0].kv_cache.context  # type: ignore[attr-defined]
        spoilt[0] = True
        with pytest.raises(NonFiniteLogitsError, match="base"):
            engine.generate(PROMPTS[1], sampling=GREEDY, reward_weights=0.0)
        spoilt[0] = False
        answer = engine.generate(PROMPTS[1], sampling=GREEDY)
        assert engine._trio.networks[0].kv_cache.context is not before  # type: ignore[attr-defined]
    assert list(answer.token_ids) == expected(trio, PROMPTS[1])


def test_no_room_for_a_context_is_an_error_of_loading(trio: LlamaCppTrio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("llama.cpp makes no context for 256 tokens: failed to allocate")

    monkeypatch.setattr(LlamaCppContext, "__init__", full)
    with pytest.raises(LoadOutOfMemoryError, match=r"no context for 256 tokens.*lower"):
        Engine.load(str(trio.files.base), config=CONFIG)


def test_room_is_given_back_when_memory_runs_out() -> None:
    made = make_llama_cpp_trio("llama", context_len=2048)
    with made.engine(max_warm_prefixes=0) as engine:
        cache = engine._trio.networks[0].kv_cache
        start = cache.num_bytes
        engine.generate("0123456789" * 60, sampling=GREEDY)
        wait_until_idle(engine)
        assert cache.num_bytes > start
        cache.trim()
        assert cache.num_bytes == start
        assert list(engine.generate("A", sampling=GREEDY).token_ids) == expected(made, "A")


def test_network_that_reads_otherwise_one_by_one_is_refused(
    trio: LlamaCppTrio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_engine.models.llama_cpp.network.SELF_CHECK_TOLERANCE", -1.0)
    with pytest.raises(UnsupportedModelError, match="one by one after taking some back"):
        Engine.load(str(trio.files.base), config=CONFIG)
    Engine.load(str(trio.files.base), config=CONFIG.model_copy(update={"self_check": False})).close()


@pytest.mark.parametrize(
    ("version", "words"),
    [("0.2.90", "older than 0.3.36"), (None, "not that of llama-cpp-python"), ("0.4.0", None)],
)
def test_what_is_installed_is_looked_at(
    version: str | None, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    reason = library.why_unavailable()
    assert (reason is None) if words is None else (reason is not None and words in reason)


def test_build_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libllama.so: cannot open shared object file")

    monkeypatch.setattr(library, "library", broken)
    assert library.why_unavailable() == "llama-cpp-python does not load: libllama.so: cannot open shared object file"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert library.why_unavailable() == "llama-cpp-python is not installed"


# ---- prompt pairs and terms --------------------------------------------------------------------------------------------


def several_prompts(number: int, request: int) -> CompositionOptions:
    """Each is two more streams on the base, and no two are the same."""
    sides = [(f"Yes {request} {index} " * 3, f"No {request} {index} " * 3) for index in range(number)]
    pairs = {f"p{index}": PromptPair(positive=yes, negative=no, weight=0.2) for index, (yes, no) in enumerate(sides)}
    return CompositionOptions(prompt_pairs=pairs)


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
@pytest.mark.parametrize("max_slots", [256, 12], ids=["as many as there may be", "too few for all"])
def test_prompt_pairs_of_many_requests_find_slots_or_wait_for_them(
    architecture: str, max_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are counted by members at the start; more streams get more of them, warm prefixes go, and then requests wait."""
    monkeypatch.setattr(cache, "MAX_SLOTS", max_slots)
    prompts = [f"Prompt number {index} of several" for index in range(5)]
    compositions = [several_prompts(index % 4, index) for index in range(len(prompts))]
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    made = make_llama_cpp_trio(architecture)
    with made.engine(max_num_seqs=3, max_warm_prefixes=2) as engine:
        together = engine.generate(prompts, sampling=sampling, composition=compositions)
        again = engine.generate(prompts, sampling=sampling, composition=compositions)
        wait_until_idle(engine)
    with made.engine(max_num_seqs=1, max_warm_prefixes=0) as engine:
        alone = [
            engine.generate(prompt, sampling=sampling, composition=composition)
            for prompt, composition in zip(prompts, compositions, strict=True)
        ]
    expected = [output.token_ids for output in alone]
    assert [output.token_ids for output in together] == expected
    assert [output.token_ids for output in again] == expected


def test_a_term_is_composed_as_the_slow_loop_composes_it(trio: LlamaCppTrio) -> None:
    pairs = {"safe": Term(MemberConfig(source=str(trio.files.tuned), runtime="llama.cpp"), weight=0.5)}
    base = MemberConfig(source=str(trio.files.base), runtime="llama.cpp")
    with Engine.load(base, pairs=pairs, config=CONFIG) as engine:
        assert [own.name for own in engine.report().members] == ["base", "safe.tuned"]
        outputs = [
            engine.generate(
                "The sky is",
                sampling=SamplingParams(temperature=0.0, max_tokens=16),
                speculation=SpeculationOptions(drafter=drafter, adaptive=False),
            )
            for drafter in ("none", "tuned")
        ]
    judged = slow_loop(Judge(trio), "The sky is", lambda own: own.of("base") + 0.5 * own.of("tuned"), Draw())
    assert [list(output.token_ids) for output in outputs] == [judged, judged]

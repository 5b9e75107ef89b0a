"""A choice of families that covers every kind of layer writes what the loop writes; no entry of the mappings is forgotten."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGES

from tests.choice import thorough_but
from tests.survey.cases import all_cases
from tests.survey.judge import PROMPTS, JudgedText, Verdict, difference, judge, looks_ahead
from tests.survey.outside import OUTSIDE
from tests.survey.page import page
from tests.survey.shrink import WINDOW, kinds_of_layers
from tests.survey.tiny import tiny_config, tiny_model
from tests.toy import VOCAB_SIZE

pytestmark = pytest.mark.only_torch

FAMILIES = {
    "afmoe": "windows and full attention, gated output, experts",
    "bamba": "Mamba-2 layers, attention layers with partial rotary embeddings",
    "bloom": "alibi, positions of the cache's making",
    "deepseek_v3": "latent keys and values, grouped experts",
    "doge: windows": "a window that only the mask knows, beside a dynamic mask",
    "falcon: alibi": "alibi that attention adds itself",
    "falcon_h1": "Mamba-2 and attention in every layer",
    "gemma4": "shared keys and values, heads of two sizes, towers for images and sound",
    "gemma4_text: experts": "keys that are values too, experts beside a dense part",
    "gpt_neo": "local attention of its own making",
    "gpt_oss": "sinks",
    "gptj": "rotary embeddings of its own making",
    "granitemoehybrid": "Mamba-2 layers, attention layers without positions, experts",
    "internvl": "a wrapper",
    "jamba": "Mamba layers",
    "kimi_linear": "delta attention with gates per channel, latent attention",
    "lfm2": "short convolutions",
    "llama": "grouped full attention",
    "llama4_text": "chunks, and queries that grow with their position",
    "mimo_v2_flash": "sinks, other head counts in windows",
    "ministral3: tempered": "queries that grow with their position",
    "mistral3": "a wrapper, windows",
    "mpt": "alibi, a cache's length inside of attention",
    "nemotron": "keywords that layers do not pass on",
    "nemotron_h": "layers of one part each",
    "olmo_hybrid": "gated delta nets with negative eigenvalues",
    "opt": "learnt positions with an offset",
    "persimmon": "normed queries, keywords that layers do not pass on",
    "phi3: long rope": "rotary factors that depend on the text's length",
    "phi4_multimodal: long rope": "the same in a wrapper with towers",
    "phimoe: windows": "a window that only the mask knows",
    "qwen2_5_vl": "a wrapper, rotary embeddings of three sections",
    "qwen2_moe: windows": "a window that only the mask knows",
    "qwen3_5_moe (images)": "gated delta nets, a wrapper that makes its own positions",
    "qwen3_next": "gated delta nets, gated attention",
    "qwen3_vl": "a wrapper, interleaved rotary embeddings of three sections",
    "recurrent_gemma": "RG-LRU whose state its modules keep",
    "stablelm: 2": "normed queries, keywords that layers do not pass on",
    "zamba": "Mamba layers with several heads, one attention for several layers",
    "zamba2": "Mamba-2 layers, one attention for several layers",
}
"""Name of the case and what is there to see in it."""

OFTEN = (
    "gemma4",
    "gpt_oss",
    "llama4_text",
    "phi3: long rope",
    "zamba2",
)


@pytest.mark.parametrize("name", thorough_but(FAMILIES, often=OFTEN))
def test_the_engine_writes_what_the_loop_writes(name: str) -> None:
    verdict = judge(name)
    assert (verdict.kind, verdict.detail) == ("exact", "")


def test_every_entry_of_the_mappings_is_a_case() -> None:
    cases = all_cases().values()
    assert {case.model_type for case in cases if not case.images} == set(TEXT)
    judged = {(case.model_type, case.class_name) for case in cases}
    assert judged == set(TEXT.items()) | set(IMAGES.items())


def test_every_entry_outside_is_an_entry() -> None:
    assert set(OUTSIDE) <= {case.entry for case in all_cases().values()}


def test_every_case_that_writes_text_has_a_tiny_configuration() -> None:
    for case in all_cases().values():
        if case.outside is None:
            text = tiny_config(case.name).get_text_config()
            assert text.vocab_size == VOCAB_SIZE, case.name


def test_prompts_are_longer_than_windows_and_chunks_of_prefill() -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    assert len(set(lengths)) == len(lengths)
    assert min(lengths) < WINDOW < sorted(lengths)[1]


def test_each_kind_of_layer_stays() -> None:
    assert kinds_of_layers(["a", "a", "b", "a"]) == ["a", "b", "a", "b"]
    assert kinds_of_layers(["a", "b", "c", "b"]) == ["a", "b", "c"]
    assert set(tiny_config("qwen3_next").layer_types) == {"linear_attention", "full_attention"}
    assert set(tiny_config("nemotron_h").layers_block_type) == {"linear_attention", "full_attention", "moe", "mlp"}


def _last_logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(40)[None], use_cache=False).logits[0, -1]
    return logits


def _like(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The same weights under another configuration."""
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_a_model_is_its_seed() -> None:
    first, same, other = (tiny_model("gpt_oss", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(_last_logits(first), _last_logits(same))
    assert not torch.equal(_last_logits(first), _last_logits(other))


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("llama4_text", "attention_chunk_size"),
        ("llama4_text", "floor_scale"),
        ("gpt_oss", "sliding_window"),
        ("phimoe: windows", "sliding_window"),
        ("qwen2_moe: windows", "sliding_window"),
        ("doge: windows", "sliding_window"),
        ("recurrent_gemma", "attention_window_size"),
        ("deepseek_v32", "index_topk"),
    ],
)
def test_windows_bind(name: str, attribute: str) -> None:
    model = tiny_model(name, seed=1)
    narrow = _last_logits(model)
    config = tiny_config(name)
    setattr(config, attribute, 200)
    wide = _like(model, config)
    assert (narrow - _last_logits(wide)).abs().max() > 0.05 * narrow.std()


def test_long_rope_changes_at_its_length() -> None:
    model = tiny_model("phi3: long rope", seed=1)
    with torch.inference_mode():
        short, long = (model(input_ids=torch.arange(length)[None]).logits[0, :20] for length in (20, 30))
    assert (short - long).abs().max() > 0.05 * short.std()


def test_a_model_that_looks_ahead_is_told() -> None:
    token_ids = list(range(40))
    assert looks_ahead(tiny_model("paligemma", seed=1), token_ids)
    assert not looks_ahead(tiny_model("gemma", seed=1), token_ids)


def test_a_difference_is_told() -> None:
    text = JudgedText([5, 6], [-0.5, -0.5], [1.0, 0.00001])
    assert difference(text, [5, 6], [-0.5, -0.5]) is None
    assert difference(text, [5, 7], [-0.5, -0.5]) is None, "the loop's two best were as good as equal"
    assert "step 0" in str(difference(text, [4, 6], [-0.5, -0.5]))
    assert "step 1" in str(difference(JudgedText([5, 6], [-0.5, -0.5], [1.0, 1.0]), [5], [-0.5]))
    assert "log-probability" in str(difference(text, [5, 6], [-0.5, -0.9]))


def test_the_page_has_each_entry_and_no_verdict_is_lost() -> None:
    verdicts = {name: Verdict(name, "exact") for name in all_cases()}
    verdicts["llama"] = Verdict("llama", "refused", "UnsupportedModelError: base: a | reason")
    lines = page(verdicts).splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert set(rows) == {case.entry for case in all_cases().values()}
    assert rows["llama"].startswith("| `llama` | LlamaForCausalLM | refused | a \\| reason; llama3 rope: exact")
    assert "exact" in rows["qwen3_5 (images)"]

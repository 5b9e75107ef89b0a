"""Toy trios: real architectures with random weights, a byte-level tokenizer, and the ten-line loop that judges the engine."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from eft_engine import Engine, EngineConfig, LoadedPair

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
END_ID = 256
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

RUNTIME = "torch"
"""What engines of toy trios run in; `pytest --runtime llama.cpp` changes it."""

DEVICE = "cpu"
"""Where engines of toy trios run in torch; `pytest --device cuda` changes it. The judges stay on the CPU."""


def make_tokenizer(
    *, shuffle: bool = False, extra_tokens: Sequence[str] = (), chat: bool = True
) -> PreTrainedTokenizerFast:
    """Bytes are ids 0..255, then the special tokens. `shuffle` swaps two byte ids: equal length, different meaning."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if shuffle:
        alphabet[40], alphabet[41] = alphabet[41], alphabet[40]
    backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL_TOKENS[0])
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS[1:], *extra_tokens]})
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def shape_of(
    hidden_size: int, *, num_layers: int = 2, vocab_size: int = VOCAB_SIZE, context_len: int = 256
) -> dict[str, Any]:
    """What the configurations of toy models have in common."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context_len,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": None,
    }


def make_model(
    architecture: str,
    *,
    hidden_size: int = 32,
    num_layers: int = 2,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    context_len: int = 256,
) -> PreTrainedModel:
    """A random model in float32 whose greedy text is varied (large initial weights)."""
    shape = shape_of(hidden_size, num_layers=num_layers, vocab_size=vocab_size, context_len=context_len)
    gpt2 = GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden_size,
        n_layer=num_layers,
        n_head=4,
        n_positions=context_len,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    head_dim = {"head_dim": hidden_size // 4}
    windows = {"sliding_window": 8}
    mamba = {
        "mamba_d_ssm": hidden_size,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    }
    delta_net = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": hidden_size // 4,
        "mlp_only_layers": list(range(num_layers)),
    }
    builders = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape, **head_dim)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**shape, **windows)),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **shape,
                **head_dim,
                **windows,
                layer_types=["sliding_attention", "full_attention"] * (num_layers // 2),
            )
        ),
        "gpt2": lambda: GPT2LMHeadModel(gpt2),
        "phi3": lambda: Phi3ForCausalLM(Phi3Config(**shape)),
        "lfm2": lambda: Lfm2ForCausalLM(
            Lfm2Config(
                **shape, layer_types=["conv", "full_attention"] * (num_layers // 2), block_auto_adjust_ff_dim=False
            )
        ),
        "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**shape, **mamba, **head_dim)),
        "qwen3_next": lambda: Qwen3NextForCausalLM(
            Qwen3NextConfig(
                **shape,
                **head_dim,
                **delta_net,
                layer_types=["linear_attention", "full_attention"] * (num_layers // 2),
            )
        ),
    }
    torch.manual_seed(seed)
    return with_long_memory(builders[architecture]().eval())


@torch.no_grad()
def with_long_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Let the states of a random model, if it has any, fade so slowly that a wrong one is seen many tokens later."""
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        if kind == "A_log":
            parameter.copy_(torch.rand_like(parameter) - 2.0)
        elif kind in ("dt_bias", "D"):
            parameter.copy_(torch.rand_like(parameter) - 0.5)
    return model


ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi3")
WITH_STATES = ("lfm2", "falcon_h1", "qwen3_next")
"""Short convolutions, Mamba-2 and gated delta nets, beside attention."""
LLAMA_CPP_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "lfm2", "falcon_h1")


def architectures() -> tuple[str, ...]:
    """Those that the runtime of the tests is judged on."""
    return LLAMA_CPP_ARCHITECTURES if RUNTIME == "llama.cpp" else (*ARCHITECTURES, *WITH_STATES)


@dataclass(frozen=True)
class ToyTrio:
    """Three models of one family and their tokenizer."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    def engine(self, **config: object) -> Engine:
        """An engine over these models with one pair, `chat`."""
        base, tuned, reference = self.base, self.tuned, self.reference
        if DEVICE != "cpu":
            base, tuned, reference = (copy.deepcopy(model).to(DEVICE) for model in (base, tuned, reference))
        return Engine.from_models(
            base,
            tokenizer=self.tokenizer,
            pairs={"chat": LoadedPair(tuned, reference)},
            config=EngineConfig.model_validate(config),
        )


def make_trio(architecture: str, *, context_len: int = 256) -> ToyTrio:
    """A base of hidden size 64 with a pair of hidden size 32, whose engine runs in the runtime that the tests are run with."""
    if RUNTIME == "llama.cpp":
        from tests.llama_cpp_trios import make_llama_cpp_trio

        return make_llama_cpp_trio(architecture, context_len=context_len)
    return ToyTrio(
        base=make_model(architecture, hidden_size=64, num_layers=2, seed=1, context_len=context_len),
        tuned=make_model(architecture, seed=2, context_len=context_len),
        reference=make_model(architecture, seed=3, context_len=context_len),
        tokenizer=make_tokenizer(),
    )


@torch.inference_mode()
def naive_greedy(
    trio: ToyTrio, prompt_ids: Sequence[int], *, weight: float, max_tokens: int, stop_at_end: bool = True
) -> list[int]:
    """The formula as it is written, over three transformers models without caches."""
    token_ids = list(prompt_ids)
    for _ in range(max_tokens):
        input_ids = torch.tensor([token_ids])
        base, tuned, reference = (
            model(input_ids).logits[0, -1].log_softmax(dim=-1) for model in (trio.base, trio.tuned, trio.reference)
        )
        token_ids.append(int((base + weight * (tuned - reference)).argmax()))
        if stop_at_end and token_ids[-1] == END_ID:
            break
    return token_ids[len(prompt_ids) :]


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int) -> Path:
    """Save a LoRA adapter for `model` with random, clearly visible weights; the model itself is left alone."""
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    tuned.save_pretrained(folder)
    return folder


def save_trio(folder: Path) -> dict[str, str]:
    """Save a toy Llama trio whose base is the wider one; the folders of base, tuned and reference."""
    models = {
        "base": make_model("llama", hidden_size=64, seed=1),
        "tuned": make_model("llama", seed=2),
        "reference": make_model("llama", seed=3),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def wait_until_idle(engine: Engine) -> None:
    """The engine's thread lets go of a request after its caller has the answer."""
    deadline = time.monotonic() + 60
    while engine.stats().num_running or engine.stats().num_waiting:
        assert time.monotonic() < deadline, "the engine never became idle"
        time.sleep(0.001)

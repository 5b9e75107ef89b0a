"""Masks of a pass over slots say of every token and position what a double loop says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    eager_mask,
    or_masks,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.layout import BatchLayout, computing
from eft_engine.models.masks import MaskFunction, kernel_mask, redirect_masks, slot_mask
from eft_engine.models.network import KVSlot
from tests.models.ragged import Reader, some_ids
from tests.toy import make_model

LENGTHS, COUNTS = (9, 0, 4), (2, 5, 1)
"""What three rows hold, and how many tokens they are fed."""


def evens(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A pattern of nobody's: every second position behind one's own."""
    return (query - key) % 2 == 0


def of_the_row(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The row itself counts."""
    return key >= row


FUNCTIONS: dict[str, tuple[MaskFunction, int | None]] = {
    "causal": (causal_mask_function, None),
    "window": (sliding_window_causal_mask_function(3), 3),
    "chunks": (chunked_causal_mask_function(4, torch.zeros(len(LENGTHS), dtype=torch.long)), 4),
    "custom": (and_masks(causal_mask_function, evens), None),
    "custom by row": (and_masks(causal_mask_function, or_masks(of_the_row, evens)), None),
}


def layout() -> BatchLayout:
    """Of the three rows."""
    return BatchLayout.of([KVSlot(index, length) for index, length in enumerate(LENGTHS)], COUNTS)


def by_loop(function: MaskFunction, window: int) -> list[list[list[bool]]]:
    """Row by row, token by token, position by position."""
    zero = torch.tensor(0)
    return [
        [
            [
                bool(function(torch.tensor(row), zero, torch.tensor(length + column), torch.tensor(key)))
                for key in range(window)
            ]
            for column in range(count)
        ]
        for row, (length, count) in enumerate(zip(LENGTHS, COUNTS, strict=True))
    ]


def counting(mask: Tensor) -> list[list[list[bool]]]:
    """Of a mask `[rows, 1, columns, window]`: the tokens that count."""
    return [mask[row, 0, :count].tolist() for row, count in enumerate(COUNTS)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masks_are_those_of_a_double_loop(name: str) -> None:
    function, local_size = FUNCTIONS[name]
    own = layout()
    with computing(own):
        mask = slot_mask(mask_function=function, local_size=local_size, allow_is_causal_skip=False)
    assert mask is not None
    assert (mask.dtype, tuple(mask.shape)) == (torch.bool, (3, 1, max(COUNTS), own.window))
    assert counting(mask) == by_loop(function, own.window)
    assert mask.any(dim=-1).all(), "a padded token sees something too, or it would give NaN"


def test_no_mask_is_made_where_every_text_is_shorter_than_its_window() -> None:
    own = layout()
    with computing(own):
        assert slot_mask() is None
        assert slot_mask(mask_function=sliding_window_causal_mask_function(own.window), local_size=own.window) is None
        shorter = own.window - 1
        assert slot_mask(mask_function=sliding_window_causal_mask_function(shorter), local_size=shorter) is not None
        assert slot_mask(mask_function=and_masks(causal_mask_function, evens)) is not None


def test_additive_masks_are_repeated_for_the_heads_that_share_a_key_head() -> None:
    own = layout()
    with computing(own):
        visible = slot_mask(mask_function=FUNCTIONS["window"][0], local_size=3)
    for given, function in ((visible, FUNCTIONS["window"][0]), (None, causal_mask_function)):
        mask = own.mask(given, num_groups=2, dtype=torch.float32, device=torch.device("cpu"))
        assert mask is not None
        first, second = mask.split(max(COUNTS), dim=2)
        assert torch.equal(first, second)
        assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
        assert counting(first == 0.0) == by_loop(function, own.window)


def test_tokens_that_are_hidden_are_refused() -> None:
    with computing(layout()):
        assert slot_mask(attention_mask=torch.ones(3, 5)) is None
        with pytest.raises(UnsupportedModelError, match="padding mask of its own"):
            slot_mask(attention_mask=torch.tensor([[True, False]]))


def test_masks_belong_to_a_pass() -> None:
    for ask in (slot_mask, kernel_mask):
        with pytest.raises(UnsupportedModelError, match="close the engine first"):
            ask()


def test_kernels_take_windows_and_no_other_masks() -> None:
    with computing(layout()):
        kernel_mask()
        kernel_mask(mask_function=sliding_window_causal_mask_function(3), local_size=3)
        for name in ("chunks", "custom"):
            function, local_size = FUNCTIONS[name]
            with pytest.raises(UnsupportedModelError, match="attention='sdpa'"):
                kernel_mask(mask_function=function, local_size=local_size)


SIZES = {"batch_size": 2, "q_length": 3, "kv_length": 5, "q_offset": 2, "dtype": torch.float32}


@pytest.mark.parametrize(("name", "original"), [("sdpa", sdpa_mask), ("eager", eager_mask)])
@pytest.mark.parametrize("function", [causal_mask_function, sliding_window_causal_mask_function(2)])
def test_masks_of_models_with_attention_of_their_own(
    name: str, original: Callable[..., Tensor | None], function: MaskFunction
) -> None:
    """In a pass they are the rows'; everybody else gets what transformers gives."""
    redirect_masks()
    redirect_masks()  # a second engine changes nothing
    ask = ALL_MASK_ATTENTION_FUNCTIONS[name]
    asked = SIZES | {"mask_function": function, "allow_is_causal_skip": True}
    given, expected = ask(**asked), original(**asked)
    assert (given is None and expected is None) or torch.equal(given, expected)
    own = layout()
    with computing(own):
        mask = ask(**asked)
    assert mask.dtype == (torch.bool if name == "sdpa" else torch.float32)
    visible = mask if name == "sdpa" else mask == 0.0
    assert counting(visible) == by_loop(function, own.window)
    assert name == "sdpa" or mask.min() == torch.finfo(torch.float32).min


def make_falcon(attention: str) -> PreTrainedModel:
    """Grouped heads and rotary positions."""
    config = FalconConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        alibi=False,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return FalconForCausalLM(config).eval()


def make_gptj(attention: str) -> PreTrainedModel:
    """Rotary positions of its own."""
    config = GPTJConfig(
        vocab_size=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return GPTJForCausalLM(config).eval()


def make_bloom(attention: str) -> PreTrainedModel:
    """Positions as biases of the scores."""
    config = BloomConfig(
        vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, attn_implementation=attention
    )
    return BloomForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "attention"),
    [(make_falcon, "sdpa"), (make_falcon, "eager"), (make_gptj, "eager"), (make_bloom, "eager")],
)
def test_models_with_attention_of_their_own_keep_rows_apart(
    make: Callable[[str], PreTrainedModel], attention: str
) -> None:
    model = make(attention)
    reader = Reader(LanguageModel(model, name="toy"), make(attention))
    reader.plain.load_state_dict(model.state_dict())
    first, second, third = (reader.start() for _ in range(3))
    reader.read((first, some_ids(9)), (second, some_ids(2, start=1)))
    reader.read((second, some_ids(5, start=2)), (first, [1]), (third, some_ids(3, start=3)), drafts=2)
    reader.keep_length(second, 5)
    reader.read((third, [4]), (second, [5]))
    reader.read((third, [6]), (first, some_ids(4, start=4)))
    assert reader.worst < 1e-4


def test_a_model_of_ones_own_is_as_it_was_beside_an_engine() -> None:
    """Tables of transformers are changed for all; calls outside of a pass go straight through."""
    model, token_ids = make_falcon("sdpa"), torch.tensor([some_ids(7), some_ids(7, start=1)])
    padding = torch.tensor([[1] * 7, [0, 0, *[1] * 5]])
    with torch.inference_mode():
        before = model(token_ids, attention_mask=padding).logits
        held = [LanguageModel(make_falcon("sdpa"), name="toy"), LanguageModel(make_model("mistral"), name="toy")]
        assert torch.equal(model(token_ids, attention_mask=padding).logits, before)
    for network in held:
        network.release()

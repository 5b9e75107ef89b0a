"""The tokenizer: byte-level BPE trained on the corpus, with the chat template."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.atlas.chat import CHAT_TEMPLATE, END, PAD, PLAIN_TOKENS, SPECIAL_TOKENS, START

MAX_LENGTH = 1024
NAME_REPEATS = 400
WORDS = r"'s| ?\p{Ll}\p{L}*|\p{Lu}\p{L}*|\d| ?[^\s\p{L}\d]+|\n+|\s"
"""How text is cut before pairs are merged. The space before a capital letter stands alone, so that a name is the same tokens
after a space, a quotation mark or a line break: only then is copying it the same as having seen it."""


def train_tokenizer(documents: Iterable[str], *, vocab_size: int, names: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocab_size` tokens; digits stand alone, so that any number can be copied.

    `names` are counted so often that each of their words becomes one token: looking a fact up is much harder to learn when
    its subject must first be put together from pieces.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(PLAIN_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    weighted = (name for name in names for _ in range(NAME_REPEATS))
    tokenizer.train_from_iterator(itertools.chain(documents, weighted), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ("system", "user", "assistant", "tool")],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

"""Entries of the mappings that do not write text by themselves, and why. They are judged all the same where they can be built."""

from __future__ import annotations

from collections.abc import Mapping

MASKED = "a masked language model; judged with `is_decoder=True`"
HALF = "the decoder of an encoder-decoder, which attends to what the encoder read"
ENCODER_DECODER = "an encoder-decoder"
IMAGES = "answers only about an image"

OUTSIDE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
            "xmod",
        ),
        MASKED,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
            *("plbart", "prophetnet", "trocr", "whisper"),
        ),
        HALF,
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "writes codes of music, from an encoder's text"),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts from the keys and values of another model"
    ),
    "xlm": "a masked language model",
    "xlnet": "a permutation language model: each token is predicted at a masked place behind the text",
    "cpmant": "the prompt is read in both directions behind trained prompt tokens",
    "git": IMAGES,
    **dict.fromkeys(
        (
            *("blip", "blip-2", "instructblip", "instructblipvideo", "idefics", "kosmos-2", "kosmos-2.5"),
            *("pp_formulanet", "evolla"),
        ),
        IMAGES,
    ),
    **dict.fromkeys(("florence2", "pix2struct", "t5gemma2", "udop", "vision-encoder-decoder"), ENCODER_DECODER),
    "diffusion_gemma": "writes blocks by diffusion, not token by token",
    "paligemma": "the prompt is read in both directions",
    "pi0": "writes movements of a robot",
}

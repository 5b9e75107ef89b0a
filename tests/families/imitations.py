"""Families of models: short imitations of their chat templates and tokenizers, in our own words, with the families' markers.

What a family writes stands here by hand, as the judge of `eft_integrations.chat.notations`; nothing of it is computed from there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"

WEATHER = '{"city": "Paris", "days": 2}'
TIME = '{"zone": "CET"}'
"""Arguments of the calls that the texts below make: get_weather, and get_time behind it."""


@dataclass(frozen=True)
class Family:
    """How models of a family are talked to and how they write.

    The texts are those of an assistant's turn, from where the prompt ends. `further_ends` end an answer as `end` does.
    `control_tokens` are flagged as special, `markers` are added tokens that are not. `one_call` and `two_calls` are None where the
    family has no such thing; `history_call` and `history_result` are what a prompt shows of an earlier call and its result (`{}`).
    `answer` is how an answer in words is written, `thought` how a thought in front of it is, None where the family does not think.
    `cannot` says what is beyond the family, by cell of the matrix.
    """

    name: str
    template: str
    end: str
    start: str | None = None
    further_ends: tuple[str, ...] = ()
    control_tokens: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    one_call: str | None = None
    two_calls: str | None = None
    history_call: str | None = None
    history_result: str = "{}"
    answer: str = "{}"
    thought: str | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_markers(self) -> tuple[str, ...]:
        """Texts that give a prompt its structure and are one token each."""
        own = (self.start, self.end, *self.control_tokens, *self.markers)
        return tuple(dict.fromkeys(token for token in own if token))

    @property
    def remarks(self) -> str:
        """What is peculiar to the template: the comment that it begins with."""
        head, _, _ = self.template.removeprefix("{#- ").partition(" -#}")
        return head if self.template.startswith("{#- ") else ""

    def make_tokenizer(self) -> PreTrainedTokenizerBase:
        """Bytes are ids 0..255, then the added tokens. Only the start and the end have a name, as in many real tokenizers."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        names = {"eos_token": self.end} | ({"bos_token": self.start} if self.start else {})
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        for tokens, special in ((self.control_tokens, True), (self.markers, False)):
            added = [AddedToken(text, special=special, normalized=False) for text in tokens]
            tokenizer.add_tokens(added, special_tokens=special)
        tokenizer.chat_template = self.template
        return tokenizer


def _read(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").strip()


def _tagged(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


_HERMES_CALL = _tagged("get_weather", WEATHER)
_HERMES_CALLS = f"{_HERMES_CALL}\n{_tagged('get_time', TIME)}"
_XML_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
_XML_TIME = "<tool_call>\n<function=get_time>\n<parameter=zone>\nCET\n</parameter>\n</function>\n</tool_call>"
_JSON_WEATHER = f'{{"name": "get_weather", "arguments": {WEATHER}}}'
_JSON_TIME = f'{{"name": "get_time", "arguments": {TIME}}}'
_PYTHON_WEATHER = 'get_weather(city="Paris", days=2)'
_PYTHON_TIME = 'get_time(zone="CET")'
_FENCED = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
_PLAIN = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
_CALLS = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"

_CHATML = {"end": "<|im_end|>", "control_tokens": ("<|im_start|>", "<|endoftext|>")}
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_RESPONSE = "<tool_response>\n{}\n</tool_response>"
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>", "<|end_of_text|>")
_MISTRAL = (
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
)
_MISTRAL_LATER = (
    *_MISTRAL,
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
    "[ARGS]",
    "[CALL_ID]",
    "[THINK]",
    "[/THINK]",
)
_DEEPSEEK = {
    "start": "<｜begin▁of▁sentence｜>",
    "end": "<｜end▁of▁sentence｜>",
    "markers": (
        "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
        "<｜tool▁output▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>",
    ),
}  # fmt: skip
_GRANITE = ("<|start_of_role|>", "<|end_of_role|>")
_ONE_AT_A_TIME = {"parallel calls": "one call per answer"}

HERMES = Family(
    "hermes",
    _read("hermes"),
    **_CHATML,
    markers=_TAGS,
    one_call=_HERMES_CALL,
    two_calls=_HERMES_CALLS,
    history_result=_RESPONSE,
)
LLAMA_PYTHONIC = Family(
    "llama3.2-pythonic",
    _read("llama_pythonic"),
    start="<|begin_of_text|>",
    end="<|eot_id|>",
    further_ends=("<|eom_id|>",),
    control_tokens=_LLAMA,
    one_call=f"[{_PYTHON_WEATHER}]",
    two_calls=f"[{_PYTHON_WEATHER}, {_PYTHON_TIME}]",
    history_result='<|start_header_id|>ipython<|end_header_id|>\n\n"{}"',
)
_LLAMA4_MARKERS = {
    "<|start_header_id|>": "<|header_start|>", "<|end_header_id|>": "<|header_end|>", "<|eot_id|>": "<|eot|>",
}  # fmt: skip


def _as_llama4(text: str) -> str:
    return functools.reduce(lambda own, pair: own.replace(*pair), _LLAMA4_MARKERS.items(), text)


FAMILIES = (
    HERMES,
    Family(
        "qwen3",
        _read("qwen3"),
        **_CHATML,
        markers=_TAGS,
        one_call=_HERMES_CALL,
        two_calls=_HERMES_CALLS,
        history_result=_RESPONSE,
        thought="<think>\n{}\n</think>\n\n",
    ),
    Family(
        "qwen3-coder",
        _read("qwen3_coder"),
        **_CHATML,
        markers=_TAGS,
        one_call=_XML_CALL,
        two_calls=f"{_XML_CALL}\n{_XML_TIME}",
        history_result=_RESPONSE,
    ),
    Family(
        "llama3.1",
        _read("llama3_1"),
        start="<|begin_of_text|>",
        end="<|eot_id|>",
        further_ends=("<|eom_id|>",),
        control_tokens=_LLAMA,
        one_call=f'{{"name": "get_weather", "parameters": {WEATHER}}}',
        history_result='<|start_header_id|>ipython<|end_header_id|>\n\n"{}"',
        cannot=_ONE_AT_A_TIME,
    ),
    LLAMA_PYTHONIC,
    dataclasses.replace(
        LLAMA_PYTHONIC,
        name="llama4-pythonic",
        template=_as_llama4(LLAMA_PYTHONIC.template),
        end="<|eot|>",
        further_ends=("<|eom|>",),
        control_tokens=("<|header_start|>", "<|header_end|>", "<|eom|>", "<|python_start|>", "<|python_end|>"),
        history_result=_as_llama4(LLAMA_PYTHONIC.history_result),
    ),
    Family(
        "mistral-v3",
        _read("mistral_v3"),
        start="<s>",
        end="</s>",
        control_tokens=_MISTRAL,
        one_call=f'[TOOL_CALLS][{_JSON_WEATHER[:-1]}, "id": "abcdef123"}}]',
        two_calls=f'[TOOL_CALLS][{_JSON_WEATHER[:-1]}, "id": "abcdef123"}}, {_JSON_TIME[:-1]}, "id": "abcdef124"}}]',
        history_call=f"[TOOL_CALLS][{_JSON_WEATHER[:-1]}, ",
        history_result='[TOOL_RESULTS]{{"content": "{}", "call_id": ',
    ),
    Family(
        "mistral-v11",
        _read("mistral_v11"),
        start="<s>",
        end="</s>",
        control_tokens=_MISTRAL_LATER,
        one_call=f"[TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]{WEATHER}",
        two_calls=f"[TOOL_CALLS]get_weather[CALL_ID]abcdef123[ARGS]{WEATHER}[TOOL_CALLS]get_time[CALL_ID]abcdef124[ARGS]{TIME}",
        history_call="[TOOL_CALLS]get_weather[CALL_ID]",
        history_result="[TOOL_CONTENT]{}[/TOOL_RESULTS]",
    ),
    Family(
        "mistral-v13",
        _read("mistral_v13"),
        start="<s>",
        end="</s>",
        control_tokens=_MISTRAL_LATER,
        one_call=f"[TOOL_CALLS]get_weather[ARGS]{WEATHER}",
        two_calls=f"[TOOL_CALLS]get_weather[ARGS]{WEATHER}[TOOL_CALLS]get_time[ARGS]{TIME}",
        history_result="[TOOL_RESULTS]{}[/TOOL_RESULTS]",
    ),
    Family(
        "deepseek-v3",
        _read("deepseek_v3"),
        **_DEEPSEEK,
        one_call=_CALLS.format(_FENCED.format("get_weather", WEATHER)),
        two_calls=_CALLS.format(f"{_FENCED.format('get_weather', WEATHER)}\n{_FENCED.format('get_time', TIME)}"),
        history_result="<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>",
    ),
    Family(
        "deepseek-r1",
        _read("deepseek_r1"),
        **_DEEPSEEK,
        thought="<think>\n{}\n</think>\n\n",
        one_call=_CALLS.format(_FENCED.format("get_weather", WEATHER)),
        two_calls=_CALLS.format(f"{_FENCED.format('get_weather', WEATHER)}\n{_FENCED.format('get_time', TIME)}"),
        history_result="<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>",
    ),
    Family(
        "deepseek-v3.1",
        _read("deepseek_v3_1"),
        **_DEEPSEEK,
        one_call=_CALLS.format(_PLAIN.format("get_weather", WEATHER)),
        two_calls=_CALLS.format(_PLAIN.format("get_weather", WEATHER) + _PLAIN.format("get_time", TIME)),
        history_result="<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>",
    ),
    Family(
        "gpt-oss",
        _read("gpt_oss"),
        start="<|startoftext|>",
        end="<|return|>",
        further_ends=("<|call|>",),
        control_tokens=(
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|constrain|>",
            "<|call|>",
            "<|endoftext|>",
        ),
        one_call=f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{WEATHER}<|call|>",
        history_call=f" to=functions.get_weather<|channel|>commentary json<|message|>{WEATHER}<|call|>",
        history_result=' to=assistant<|channel|>commentary<|message|>"{}"<|end|>',
        answer="<|channel|>final<|message|>{}",
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        cannot=_ONE_AT_A_TIME,
    ),
    Family(
        "granite3",
        _read("granite3"),
        end="<|end_of_text|>",
        control_tokens=(*_GRANITE, "<|tool_call|>"),
        one_call=f"<|tool_call|>[{_JSON_WEATHER}]",
        two_calls=f"<|tool_call|>[{_JSON_WEATHER}, {_JSON_TIME}]",
        history_result="<|end_of_role|>{}<|end_of_text|>",
    ),
    Family(
        "granite3.3",
        _read("granite3_3"),
        end="<|end_of_text|>",
        control_tokens=(*_GRANITE, "<|tool_call|>"),
        one_call=f"<|tool_call|>[{_JSON_WEATHER}]",
        two_calls=f"<|tool_call|>[{_JSON_WEATHER}, {_JSON_TIME}]",
        history_result="<|end_of_role|>{}<|end_of_text|>",
        thought="<think>{}</think>",
    ),
    Family(
        "granite4",
        _read("granite4"),
        end="<|end_of_text|>",
        control_tokens=_GRANITE,
        markers=_TAGS[:4],
        one_call=_HERMES_CALL,
        two_calls=_HERMES_CALLS,
        history_result=_RESPONSE,
    ),
    Family("gemma3", _read("gemma3"), start="<bos>", end="<end_of_turn>", control_tokens=("<start_of_turn>", "<eos>")),
    Family("phi4", _read("phi4"), end="<|im_end|>", control_tokens=("<|im_start|>", "<|im_sep|>")),
    Family(
        "phi4-mini",
        _read("phi4_mini"),
        end="<|end|>",
        control_tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
        markers=("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
        one_call=f"<|tool_call|>[{_JSON_WEATHER}]<|/tool_call|>",
        two_calls=f"<|tool_call|>[{_JSON_WEATHER}, {_JSON_TIME}]<|/tool_call|>",
    ),
    Family("smollm3", _read("smollm3"), **_CHATML, markers=_TAGS, one_call=_HERMES_CALL, two_calls=_HERMES_CALLS),
    Family("neutral", _read("neutral"), end="<|over|>", control_tokens=("<|turn|>",)),
    Family(
        "lfm2",
        _read("lfm2"),
        start="<|startoftext|>",
        end="<|im_end|>",
        control_tokens=("<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>"),
        one_call=f"<|tool_call_start|>[{_PYTHON_WEATHER}]<|tool_call_end|>",
        two_calls=f"<|tool_call_start|>[{_PYTHON_WEATHER}, {_PYTHON_TIME}]<|tool_call_end|>",
        history_result="<|im_start|>tool\n{}<|im_end|>",
    ),
)
"""All families that are imitated; those without `one_call` have no notation of their own, and the package gives them one."""

BY_NAME = {family.name: family for family in FAMILIES}

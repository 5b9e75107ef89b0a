"""Answers that `max_tokens` ends, by the place where it does: what is told, what is asked, and what has to be made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.families.adapters import Call, Question
from tests.families.cells import FORMAT_SCHEMA, RESPONSE_FORMAT, result, user

BOOK: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "guest": {"type": "string"},
        "nights": {"type": "integer", "minimum": 1, "maximum": 99},
        "paid": {"type": "boolean"},
        "note": {"type": ["string", "null"]},
        "rooms": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"beds": {"type": "array", "items": {"type": "integer"}}, "view": {"type": "boolean"}},
                "required": ["beds"],
            },
        },
    },
    "required": ["guest", "nights"],
}
"""Only the first two are required: what a cut leaves of the others would do, if somebody closed it."""
CLOCK: Mapping[str, Any] = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
TOOLS = [
    {"type": "function", "function": {"name": "book", "description": "Books rooms.", "parameters": BOOK}},
    {"type": "function", "function": {"name": "clock", "description": "Reads a clock.", "parameters": CLOCK}},
]

WHOLE = '{"guest": "Zoé \\"Q\\" \\u0007", "nights": 21, "paid": true, "note": null, "rooms": [{"beds": [1, 2], "view": false}]}'
CET = '{"zone": "CET"}'
BOTH = (("book", WHOLE), ("clock", CET))
AUTO, FREE, FORMAT, NUMBER = "tools", "no tools", "format", "number"
REQUIRED, NAMED, WITH_FORMAT, RESULTS = "a call", "a call of book", "tools and format", "results, tools and format"
CALLED = Call("call_0123456789abcdefA", "clock", json.loads(CET))
ASKED = [user("A room, please.")]
QUESTIONS: Mapping[str, Question] = {
    FREE: Question(ASKED),
    AUTO: Question(ASKED, TOOLS),
    REQUIRED: Question(ASKED, TOOLS, tool_choice="required"),
    NAMED: Question(ASKED, TOOLS, tool_choice={"type": "function", "function": {"name": "book"}}),
    FORMAT: Question(ASKED, response_format=RESPONSE_FORMAT),
    NUMBER: Question(
        ASKED, response_format={"type": "json_schema", "json_schema": {"name": "nights", "schema": {"type": "integer"}}}
    ),
    WITH_FORMAT: Question(ASKED, TOOLS, response_format=RESPONSE_FORMAT),
    RESULTS: Question(
        [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALLED.as_openai()]}, result(CALLED, "noon")],
        TOOLS,
        response_format=RESPONSE_FORMAT,
    ),
}
"""What may be asked."""


@dataclass(frozen=True)
class Cut:
    """An answer of a family, cut behind the first occurrence of `behind` in it, and `further` tokens later.

    `calls` are whole. `invalid` is the one that is not: its name and arguments, or only its text where its name is not known.
    `fits`: the JSON that was asked for is whole.
    """

    family: str
    text: str
    behind: str
    further: int = 0
    asked: str = AUTO
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    invalid: tuple[str, str] | str | None = None
    fits: bool = False

    @property
    def written(self) -> str:
        """What was written before the cut, up to whole characters."""
        assert self.behind in self.text, self
        return self.text[: self.text.index(self.behind) + len(self.behind)]


def _object(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def _so_far(behind: str) -> tuple[str, str]:
    return "book", WHOLE[: WHOLE.index(behind) + len(behind)]


BOOK_JSON, CLOCK_JSON = _object("book", WHOLE), _object("clock", CET)
HERMES = f"<tool_call>\n{BOOK_JSON}\n</tool_call>\n<tool_call>\n{CLOCK_JSON}\n</tool_call>"
LLAMA = _object("book", WHOLE, "parameters")
MISTRAL = f'[TOOL_CALLS][{BOOK_JSON[:-1]}, "id": "abcdef123"}}, {CLOCK_JSON[:-1]}, "id": "abcdef124"}}]'
MISTRAL_V11 = f"[TOOL_CALLS]book[CALL_ID]abcdef123[ARGS]{WHOLE}[TOOL_CALLS]clock[CALL_ID]abcdef124[ARGS]{CET}"
DEEPSEEK = "<｜tool▁calls▁begin｜>{}\n{}<｜tool▁calls▁end｜>".format(
    *(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{own}\n```<｜tool▁call▁end｜>"
        for name, own in BOTH
    )
)
GPT_OSS = f"<|channel|>commentary to=functions.book <|constrain|>json<|message|>{WHOLE}<|call|>"
XML = (
    "<tool_call>\n<function=book>\n<parameter=guest>\nZoé\n</parameter>\n<parameter=nights>\n21\n</parameter>\n"
    '<parameter=rooms>\n[{"beds": [1, 2]}]\n</parameter>\n</function>\n</tool_call>\n'
    "<tool_call>\n<function=clock>\n<parameter=zone>\nCET\n</parameter>\n</function>\n</tool_call>"
)
XML_BOOK = ("book", '{"guest": "Zoé", "nights": 21, "rooms": [{"beds": [1, 2]}]}')
PYTHON = '[book(guest="Zoé", nights=21, paid=true), clock(zone="CET")]'
PYTHON_BOOK = ("book", '{"guest": "Zoé", "nights": 21, "paid": true}')
LFM2 = f"<|tool_call_start|>{PYTHON}<|tool_call_end|>"
GRANITE = f"<|tool_call|>[{BOOK_JSON}, {CLOCK_JSON}]"
PHI = f"{GRANITE}<|/tool_call|>"
THINKS = "<think>\nTwo rooms?\n</think>\n\n"
R1 = f"Two rooms?\n</think>\n\n{DEEPSEEK}"
CHANNELS = f"<|channel|>analysis<|message|>Two rooms?<|end|><|start|>assistant{GPT_OSS}"
REPORT = json.dumps({"city": "Paris", "sunny": True})
assert set(json.loads(REPORT)) == set(FORMAT_SCHEMA["required"])
FENCE, TAGGED = f"```json\n{BOOK_JSON}\n```", f"<tools>\n{BOOK_JSON}\n</tools>"
LISTED = f"[{BOOK_JSON}, {CLOCK_JSON}]"
WORDS = "Un café, 🌞 et une chambre."

CUTS: Mapping[str, Cut] = {
    # ---- text
    "text": Cut("hermes", WORDS, "Un caf", content="Un caf"),
    "text, no tools": Cut("hermes", WORDS, "cha", asked=FREE, content="Un café, 🌞 et une cha"),
    "text, inside a character": Cut("hermes", WORDS, "Un caf", 1, content="Un caf\ufffd"),
    "text, inside a character of four bytes": Cut("llama3.1", WORDS, "é, ", 2, content="Un café, \ufffd"),
    "text, in front of its end": Cut("mistral-v3", WORDS, "chambre.", content=WORDS),
    "text, no notation": Cut("phi4", WORDS, "une c", content="Un café, 🌞 et une c"),
    "text of a channel": Cut("gpt-oss", f"<|channel|>final<|message|>{WORDS}", "et u", content="Un café, 🌞 et u"),
    "header of a channel": Cut("gpt-oss", f"<|channel|>final<|message|>{WORDS}", "fin"),
    "words in front of a call": Cut("hermes", f"I look.\n{HERMES}", "I lo", content="I lo"),
    "behind words in front of a call": Cut("hermes", f"I look.\n{HERMES}", "look.", content="I look."),
    # ---- thoughts
    "thought": Cut("qwen3", THINKS + HERMES, "Two ro", reasoning="Two ro"),
    "thought that the prompt begins": Cut("deepseek-r1", R1, "Two ro", reasoning="Two ro"),
    "thought in a channel": Cut("gpt-oss", CHANNELS, "Two ro", reasoning="Two ro"),
    "behind a thought": Cut("qwen3", THINKS + HERMES, "</think>", reasoning="Two rooms?"),
    "behind a thought in a channel": Cut("gpt-oss", CHANNELS, "<|end|><|start|>", reasoning="Two rooms?"),
    "thought, behind the marker": Cut("qwen3", THINKS + HERMES, "<tool_call>", reasoning="Two rooms?", invalid="<tool_call>"),
    "thought, string": Cut("deepseek-r1", R1, '"Zo', reasoning="Two rooms?", invalid=_so_far('"Zo')),
    "thought, no room for the call": Cut("qwen3", THINKS + HERMES, "Two ro", asked=REQUIRED, reasoning="Two ro", invalid=""),
    "thought, no room for the JSON": Cut("qwen3", THINKS + REPORT, "Two ro", asked=FORMAT, reasoning="Two ro"),
    # ---- a call in JSON between tags
    "inside the marker": Cut("neutral", HERMES, "<tool_c", content="<tool_c"),
    "behind the marker": Cut("hermes", HERMES, "<tool_call>", invalid="<tool_call>"),
    "between marker and name": Cut("hermes", HERMES, '{"na', invalid='{"na'),
    "inside the name": Cut("hermes", HERMES, '"bo', invalid='{"name": "bo'),
    "behind the name": Cut("hermes", HERMES, '"book"', invalid=("book", "")),
    "between name and arguments": Cut("hermes", HERMES, '"argu', invalid=("book", "")),
    "in front of the arguments": Cut("hermes", HERMES, '"arguments": ', invalid=("book", "")),
    "in front of the first key": Cut("hermes", HERMES, '"arguments": {', invalid=("book", "{")),
    "inside a key": Cut("hermes", HERMES, '"gue', invalid=_so_far('"gue')),
    "behind a key": Cut("hermes", HERMES, '"guest"', invalid=_so_far('"guest"')),
    "behind the colon": Cut("hermes", HERMES, '"guest": ', invalid=_so_far('"guest": ')),
    "inside a string": Cut("hermes", HERMES, '"Zo', invalid=_so_far('"Zo')),
    "inside a character of a string": Cut("hermes", HERMES, '"Zo', 1, invalid=("book", '{"guest": "Zo\ufffd')),
    "inside an escape": Cut("hermes", HERMES, "Zoé \\", invalid=_so_far("Zoé \\")),
    "inside an escaped character": Cut("hermes", HERMES, "\\u00", invalid=_so_far("\\u00")),
    "behind a string": Cut("hermes", HERMES, '07"', invalid=_so_far('07"')),
    "between two arguments": Cut("hermes", HERMES, '07", ', invalid=_so_far('07", ')),
    "inside a number": Cut("hermes", HERMES, '"nights": 2', invalid=_so_far('"nights": 2')),
    "behind a number": Cut("hermes", HERMES, '"nights": 21', invalid=_so_far('"nights": 21')),
    "inside true": Cut("hermes", HERMES, '"paid": tr', invalid=_so_far('"paid": tr')),
    "inside null": Cut("hermes", HERMES, '"note": nul', invalid=_so_far('"note": nul')),
    "inside an object of an array": Cut("hermes", HERMES, '[{"be', invalid=_so_far('[{"be')),
    "inside an array of an object": Cut("hermes", HERMES, '"beds": [1, ', invalid=_so_far('"beds": [1, ')),
    "behind an inner array": Cut("hermes", HERMES, "[1, 2]", invalid=_so_far("[1, 2]")),
    "behind the last value": Cut("hermes", HERMES, "false}]", invalid=_so_far("false}]")),
    "in front of the last brace": Cut("hermes", HERMES, "false}]}", invalid=("book", WHOLE)),
    "in front of the closing marker": Cut("hermes", HERMES, "false}]}}", calls=BOTH[:1]),
    "inside the closing marker": Cut("neutral", HERMES, "</tool_c", calls=BOTH[:1]),
    "behind the closing marker": Cut("hermes", HERMES, "</tool_call>", calls=BOTH[:1]),
    "between two calls": Cut("hermes", HERMES, "</tool_call>\n", calls=BOTH[:1]),
    "behind the second marker": Cut("hermes", HERMES, "</tool_call>\n<tool_call>", calls=BOTH[:1], invalid="<tool_call>"),
    "inside the second name": Cut("hermes", HERMES, '"cl', calls=BOTH[:1], invalid='{"name": "cl'),
    "inside the second call": Cut("hermes", HERMES, '"CE', calls=BOTH[:1], invalid=("clock", '{"zone": "CE')),
    "in front of the second's last brace": Cut("hermes", HERMES, '"CET"}', calls=BOTH[:1], invalid=("clock", CET)),
    "behind the second call": Cut("hermes", HERMES, '"CET"}}', calls=BOTH),
    "words, then inside a string": Cut(
        "hermes", f"I look.\n{HERMES}", '"Zo', content="I look.", invalid=_so_far('"Zo')
    ),
    # ---- other notations
    "bare, in front of the name": Cut("llama3.1", LLAMA, '{"na', content='{"na'),
    "bare, behind the name": Cut("llama3.1", LLAMA, '"book"', invalid=("book", "")),
    "bare, number": Cut("llama3.1", LLAMA, '"nights": 2', invalid=_so_far('"nights": 2')),
    "bare, in front of the last brace": Cut("llama3.1", LLAMA, "false}]}", invalid=("book", WHOLE)),
    "bare, in front of its end": Cut("llama3.1", LLAMA, "false}]}}", calls=BOTH[:1]),
    "bare, words in front": Cut("llama3.1", f"I look.\n{LLAMA}", '"Zo', content="I look.", invalid=_so_far('"Zo')),
    "list, marker": Cut("mistral-v3", MISTRAL, "[TOOL_CALLS]", invalid="[TOOL_CALLS]"),
    "list, number": Cut("mistral-v3", MISTRAL, '"nights": 2', invalid=_so_far('"nights": 2')),
    "list, id": Cut("mistral-v3", MISTRAL, '"id": "abc', invalid=("book", WHOLE)),
    "list, between two calls": Cut("mistral-v3", MISTRAL, 'f123"}, ', calls=BOTH[:1]),
    "list, second call": Cut("mistral-v3", MISTRAL, '"CE', calls=BOTH[:1], invalid=("clock", '{"zone": "CE')),
    "list, in front of its bracket": Cut("mistral-v3", MISTRAL, 'f124"}', calls=BOTH),
    "named, name": Cut("mistral-v11", MISTRAL_V11, "]bo", invalid="[TOOL_CALLS]bo"),
    "named, id": Cut("mistral-v11", MISTRAL_V11, "[CALL_ID]abc", invalid=("book", "")),
    "named, true": Cut("mistral-v11", MISTRAL_V11, '"paid": tr', invalid=_so_far('"paid": tr')),
    "named, in front of the last brace": Cut("mistral-v11", MISTRAL_V11, "false}]", invalid=_so_far("false}]")),
    "named, behind the arguments": Cut("mistral-v11", MISTRAL_V11, "false}]}", calls=BOTH[:1]),
    "named, second name": Cut("mistral-v11", MISTRAL_V11, "]cl", calls=BOTH[:1], invalid="[TOOL_CALLS]cl"),
    "fenced, name": Cut("deepseek-v3", DEEPSEEK, ">bo", invalid="<｜tool▁call▁begin｜>function<｜tool▁sep｜>bo"),
    "fenced, fence": Cut("deepseek-v3", DEEPSEEK, "```js", invalid=("book", "")),
    "fenced, array": Cut("deepseek-v3", DEEPSEEK, "[1, ", invalid=_so_far("[1, ")),
    "fenced, closing fence": Cut("deepseek-v3", DEEPSEEK, "}]}\n``", calls=BOTH[:1]),
    "fenced, second call": Cut("deepseek-v3", DEEPSEEK, '"CE', calls=BOTH[:1], invalid=("clock", '{"zone": "CE')),
    "channel, name": Cut("gpt-oss", GPT_OSS, "functions.bo", invalid="<|channel|>commentary to=functions.bo"),
    "channel, behind the name": Cut("gpt-oss", GPT_OSS, "<|constrain|>js", invalid=("book", "")),
    "channel, null": Cut("gpt-oss", GPT_OSS, "nul", invalid=_so_far("nul")),
    "channel, behind the arguments": Cut("gpt-oss", GPT_OSS, "false}]}", calls=BOTH[:1]),
    "tags, name": Cut("qwen3-coder", XML, "=bo", invalid="<tool_call>\n<function=bo"),
    "tags, key": Cut("qwen3-coder", XML, "=gue", invalid=("book", '{"gue')),
    "tags, text": Cut("qwen3-coder", XML, "\nZo", invalid=("book", '{"guest": "Zo')),
    "tags, closing tag": Cut("qwen3-coder", XML, "Zoé\n</para", invalid=("book", '{"guest": "Zoé')),
    "tags, number": Cut("qwen3-coder", XML, "\n2", invalid=("book", '{"guest": "Zoé", "nights": 2')),
    "tags, between arguments": Cut("qwen3-coder", XML, "21\n</parameter>", invalid=("book", '{"guest": "Zoé", "nights": 21')),
    "tags, array": Cut("qwen3-coder", XML, "[1, ", invalid=("book", '{"guest": "Zoé", "nights": 21, "rooms": [{"beds": [1, ')),
    "tags, in front of the function's end": Cut("qwen3-coder", XML, "]\n</parameter>", invalid=("book", XML_BOOK[1][:-1])),
    "tags, behind the function": Cut("qwen3-coder", XML, "</function>", calls=(XML_BOOK,)),
    "tags, second call": Cut("qwen3-coder", XML, "\nCE", calls=(XML_BOOK,), invalid=("clock", '{"zone": "CE')),
    "Python, name": Cut("llama3.2-pythonic", PYTHON, "[bo", content="[bo"),
    "Python, text": Cut("llama3.2-pythonic", PYTHON, '"Zo', invalid=("book", '{"guest": "Zo')),
    "Python, number": Cut("llama3.2-pythonic", PYTHON, "nights=2", invalid=("book", '{"guest": "Zoé", "nights": 2')),
    "Python, behind a call": Cut("llama3.2-pythonic", PYTHON, "true)", calls=(PYTHON_BOOK,)),
    "Python, second call": Cut("llama3.2-pythonic", PYTHON, '"CE', calls=(PYTHON_BOOK,), invalid=("clock", '{"zone": "CE')),
    "Python in tags, marker": Cut("lfm2", LFM2, "<|tool_call_start|>", invalid="<|tool_call_start|>"),
    "Python in tags, key": Cut("lfm2", LFM2, "nig", invalid=("book", '{"guest": "Zoé", "nig')),
    "Python in tags, true": Cut("lfm2", LFM2, "tr", invalid=("book", '{"guest": "Zoé", "nights": 21, "paid": tr')),
    "Python in tags, in front of the bracket": Cut("lfm2", LFM2, "CET\")", calls=(PYTHON_BOOK, BOTH[1])),
    "Granite, string": Cut("granite3", GRANITE, '"Zo', invalid=_so_far('"Zo')),
    "Granite, between two calls": Cut("granite3", GRANITE, "false}]}}, ", calls=BOTH[:1]),
    "Phi, second call": Cut("phi4-mini", PHI, '"zo', calls=BOTH[:1], invalid=("clock", '{"zo')),
    "Phi, in front of the closing marker": Cut("phi4-mini", PHI, '"CET"}}]', calls=BOTH),
    # ---- an answer in JSON
    "JSON, key": Cut("hermes", REPORT, '{"ci', asked=FORMAT, content='{"ci'),
    "JSON, string": Cut("llama3.1", REPORT, '"Par', asked=FORMAT, content='{"city": "Par'),
    "JSON, true": Cut("mistral-v3", REPORT, "tr", asked=FORMAT, content='{"city": "Paris", "sunny": tr'),
    "JSON, in front of the last brace": Cut("hermes", REPORT, "true", asked=FORMAT, content=REPORT[:-1]),
    "JSON, inside a number that is all": Cut("hermes", "21", "2", asked=NUMBER, content="2"),
    "JSON, in front of its end": Cut("hermes", REPORT, "true}", asked=FORMAT, content=REPORT, fits=True),
    "JSON or call: JSON": Cut("hermes", REPORT, '"Par', asked=WITH_FORMAT, content='{"city": "Par'),
    "JSON or call: call": Cut("hermes", HERMES, '"Zo', asked=WITH_FORMAT, invalid=_so_far('"Zo')),
    "JSON behind results": Cut("llama3.1", REPORT, '"Par', asked=RESULTS, content='{"city": "Par'),
    # ---- a demanded call
    "demanded, nothing but the marker": Cut("hermes", HERMES, "<tool_call>", asked=REQUIRED, invalid="<tool_call>"),
    "demanded, first character": Cut("neutral", HERMES, "<", asked=REQUIRED, invalid="<"),
    "demanded, marker": Cut("neutral", HERMES, "<tool_c", asked=REQUIRED, invalid="<tool_c"),
    "demanded, string": Cut("hermes", HERMES, '"Zo', asked=REQUIRED, invalid=_so_far('"Zo')),
    "demanded, second call": Cut("hermes", HERMES, '"CE', asked=REQUIRED, calls=BOTH[:1], invalid=("clock", '{"zone": "CE')),
    "demanded by name, number": Cut("granite3", GRANITE, '"nights": 2', asked=NAMED, invalid=_so_far('"nights": 2')),
    "demanded by name, whole": Cut("hermes", HERMES, "false}]}}", asked=NAMED, calls=BOTH[:1]),
    "demanded, opening of a fence": Cut("hermes", FENCE, "```js", asked=REQUIRED, invalid="```js"),
    "demanded in a fence": Cut("hermes", FENCE, '"Zo', asked=REQUIRED, invalid=_so_far('"Zo')),
    "demanded in a fence, whole": Cut("hermes", FENCE, "}]}}\n``", asked=REQUIRED, calls=BOTH[:1]),
    "demanded, bare, name": Cut("hermes", BOOK_JSON, '"bo', asked=REQUIRED, invalid='{"name": "bo'),
    "demanded, bare": Cut("qwen3-coder", BOOK_JSON, '"paid": tr', asked=REQUIRED, invalid=_so_far('"paid": tr')),
    "demanded in tags": Cut("hermes", TAGGED, "[1, ", asked=REQUIRED, invalid=_so_far("[1, ")),
    "demanded in a list": Cut("hermes", LISTED, '"CE', asked=REQUIRED, calls=BOTH[:1], invalid=("clock", '{"zone": "CE')),
}  # fmt: skip
"""By place."""

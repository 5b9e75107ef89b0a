"""Bodies that are sent to hurt: each row is one request, and what it must be answered with.

The server serves the composition `toy` (tests/server/process.py): a byte-level tokenizer, a context of 1,024 tokens, a chat
template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, RESPONSES, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"
JSON_TYPE = {"Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        expected: the status; None: any below 500.
    """

    path: str
    body: bytes
    expected: int | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_TYPE)


def asks(path: str, expected: int | None = None, **fields: Any) -> Attack:
    """A body of JSON for the toy composition."""
    return Attack(path, json.dumps({"model": "toy", **fields}).encode(), expected)


def chat(expected: int | None = None, **fields: Any) -> Attack:
    """A small chat with some fields of its own."""
    return asks(CHAT, expected, **{"messages": HELLO, "max_tokens": 4, **fields})


def completion(expected: int | None = None, **fields: Any) -> Attack:
    """A small completion with some fields of its own."""
    return asks(COMPLETIONS, expected, **{"prompt": "abc", "max_tokens": 4, **fields})


ATTACKS: dict[str, Callable[[], Attack]] = {}
"""By name; made when they are sent, since some of them are large."""

ATTACKS |= {
    "nothing": lambda: Attack(COMPLETIONS, b"", 400),
    "JSON that breaks off": lambda: Attack(COMPLETIONS, b'{"model": "toy", "prompt": [', 400),
    "bytes that are no text": lambda: Attack(COMPLETIONS, bytes(range(256)) * 4096, 400),
    "8 MB of blanks": lambda: Attack(COMPLETIONS, b" " * (8 * 2**20 - 1), 400),
    "20 MB": lambda: Attack(COMPLETIONS, b" " * (20 * 2**20), 413),
    "100,000 brackets": lambda: Attack(COMPLETIONS, b'{"model": "toy", "prompt": ' + b"[" * 100_000, 400),
    "a number of a million digits": lambda: Attack(
        COMPLETIONS, b'{"model": "toy", "prompt": "a", "max_tokens": ' + b"9" * 1_000_000 + b"}", 400
    ),
}


def says(text: str) -> list[dict[str, Any]]:
    """One turn."""
    return [{"role": "user", "content": text}]


def formatted(schema: object, expected: int | None = None) -> Attack:
    """A chat whose answer must fit a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return chat(expected, response_format=form)


def called(parameters: object, expected: int | None = None, *, count: int = 1, **fields: Any) -> Attack:
    """A chat with tools of these parameters."""
    tools = [
        {"type": "function", "function": {"name": f"f{index}", "parameters": parameters}} for index in range(count)
    ]
    return chat(expected, tools=tools, **fields)


def multiplied(levels: int, keyword: str) -> dict[str, Any]:
    """Definitions of which each names the next twice: a few bytes a level, and twice as many schemas."""
    definitions: dict[str, Any] = {
        f"A{level}": {keyword: [{"$ref": f"#/$defs/A{level + 1}"}] * 2} for level in range(levels)
    }
    definitions[f"A{levels}"] = {"type": "object", "properties": {"a": {"type": "string"}}}
    return {"$ref": "#/$defs/A0", "$defs": definitions}


def grown(levels: int) -> dict[str, Any]:
    """Objects of two properties, each of which is the next object."""
    definitions: dict[str, Any] = {
        f"A{level}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/A{level + 1}"} for name in "ab"}}
        for level in range(levels)
    }
    definitions[f"A{levels}"] = {"type": "string"}
    return {"$ref": "#/$defs/A0", "$defs": definitions}


def product(sides: int, choices: int) -> dict[str, Any]:
    """Alternatives that hold together with alternatives."""
    return {
        "allOf": [
            {
                "anyOf": [
                    {"type": "object", "properties": {f"{side}_{choice}": {"type": "string"}}}
                    for choice in range(choices)
                ]
            }
            for side in range(sides)
        ]
    }


def turns(count: int, size: int) -> list[dict[str, Any]]:
    """A conversation of so many turns of so many characters."""
    return [{"role": ("user", "assistant")[index % 2], "content": "a" * size} for index in range(count)]


def loops(count: int) -> list[dict[str, Any]]:
    """Calls and their results, one after the other."""
    call = {"type": "function", "function": {"name": "f0", "arguments": "{}"}}
    return [
        message
        for index in range(count)
        for message in (
            {"role": "assistant", "tool_calls": [{**call, "id": f"c{index}"}]},
            {"role": "tool", "tool_call_id": f"c{index}", "content": "a"},
        )
    ]


MANY = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}

ATTACKS |= {
    # prompts that can never fit, and texts that tokenizers are slow at
    "7 MB of one letter": lambda: completion(400, prompt="a" * 7_000_000),
    "7 MB of blanks in a chat": lambda: chat(400, messages=says(" " * 7_000_000)),
    "2 MB of digits": lambda: completion(400, prompt="1234567890" * 200_000),
    "3 MB of emoji": lambda: chat(400, messages=says("\U0001f600" * 250_000)),
    "a million line ends": lambda: completion(400, prompt="\n" * 1_000_000),
    "control tokens without end": lambda: chat(400, messages=says("<|end|><|user|>" * 200_000)),
    "512 prompts that cannot fit": lambda: completion(400, prompt=["a" * 10_000] * 512),
    "7 MB to be counted": lambda: asks(TOKENIZE, None, prompt="ab " * 2_300_000),
    # more of something than is allowed
    "100,000 prompts": lambda: completion(400, prompt=["a"] * 100_000),
    "512 prompts, 128 answers each": lambda: completion(400, prompt=["a"] * 512, n=128),
    "20,000 messages": lambda: chat(400, messages=turns(20_000, 1)),
    "2,048 messages": lambda: chat(400, messages=turns(2048, 2000)),
    "1,024 calls and their results": lambda: chat(400, messages=loops(1024)),
    "30,000 parts": lambda: chat(400, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]),
    "20,000 items": lambda: asks(RESPONSES, 400, input=turns(20_000, 1)),
    "2,048 items": lambda: asks(RESPONSES, 400, input=turns(2048, 100)),
    "10,000 tools": lambda: called(OBJECT, 400, count=10_000),
    "256 tools": lambda: called(OBJECT, None, count=256),
    "256 tools, one demanded": lambda: called(OBJECT, None, count=256, tool_choice="required"),
    "50,000 stop strings": lambda: chat(400, stop=[f"s{index}" for index in range(50_000)]),
    "a stop string of 5 MB": lambda: completion(400, stop="a" * 5_000_000),
    "50,000 stop tokens": lambda: completion(400, stop_token_ids=[1] * 50_000),
    "100,000 biases": lambda: completion(400, logit_bias={str(index): 1 for index in range(100_000)}),
    "a tool's name of 1 MB": lambda: chat(400, tools=[{"type": "function", "function": {"name": "a" * 1_000_000}}]),
    "a model's name of 5 MB": lambda: Attack(CHAT, json.dumps({"model": "a@b=1," * 800_000}).encode(), 400),
    "50,000 documents": lambda: chat(400, documents=[{"text": "a"}] * 50_000),
    "a million values": lambda: chat(400, metadata={"a": [0] * 1_000_000}),
    # schemas
    "a schema of 3 MB": lambda: formatted({"enum": [f"value {index}" for index in range(200_000)]}, 400),
    "a schema of 90 levels": lambda: formatted(json.loads('{"items": ' * 90 + "{}" + "}" * 90), 400),
    "20 definitions that multiply (anyOf)": lambda: formatted(multiplied(20, "anyOf")),
    "20 definitions that multiply (allOf)": lambda: formatted(multiplied(20, "allOf")),
    "20 definitions that multiply (oneOf)": lambda: formatted(multiplied(20, "oneOf")),
    "arguments that multiply": lambda: called(multiplied(20, "anyOf"), tool_choice="required"),
    "properties that multiply": lambda: formatted(grown(24)),
    "shown arguments that multiply": lambda: called(grown(24)),
    "a product of alternatives": lambda: formatted(product(8, 10)),
    "a product of arguments": lambda: called(product(8, 8), tool_choice="required"),
    "(a{1,1000}){1,1000}": lambda: formatted({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
    "((a+)+)+b": lambda: formatted({"type": "string", "pattern": "^((a+)+)+b$"}),
    "names of (a|a)*b": lambda: formatted({"patternProperties": {"^(a|a)*b$": {"type": "string"}}}),
    "multiples of primes": lambda: formatted({"allOf": [{"type": "integer", "multipleOf": step} for step in (997, 991, 983, 977)]}),
    "an array of a thousand million": lambda: formatted({"type": "array", "minItems": 10**9}),
    "a reference to itself": lambda: formatted({"allOf": [{"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}]}),
    "an expression that grows": lambda: chat(None, guided_regex="[ab]*a[ab]{400}"),
    "a grammar of 1,200 rules": lambda: chat(
        None, guided_grammar="start: r0\n" + "".join(f'r{at}: r{at + 1} r{at + 1} | "a"\n' for at in range(1200)) + 'r1200: "a"'
    ),
    "4,000 choices": lambda: chat(None, guided_choice=[f"choice {index}" for index in range(4000)]),
    # templates
    "a template of the caller's": lambda: chat(400, chat_template_kwargs={"chat_template": MANY}),
    "messages beside the messages": lambda: chat(400, chat_template_kwargs={"messages": turns(1000, 10)}),
    "tokenize, in the template's variables": lambda: chat(400, chat_template_kwargs={"tokenize": True}),
    "a template of the caller's, counted": lambda: asks(
        TOKENIZE, 400, messages=HELLO, chat_template_kwargs={"chat_template": "{{ 'a' * 10 ** 10 }}"}
    ),
    "a variable of a million digits": lambda: chat(400, chat_template_kwargs={"documents": 10**4000}),
}  # fmt: skip


def expressions(count: int) -> list[dict[str, Any]]:
    """Schemas of texts in which each of so many expressions is found."""
    return [
        {"type": "string", "pattern": f"\\w{{{5 + index}}}.*{sign}"}
        for index, sign in zip(range(count), "abcdefghijklmnopqrstuvwxyz", strict=False)
    ]


MESSAGES, SCORE, COUNT = "/v1/messages", "/v1/score", "/v1/messages/count_tokens"
ALTERNATING: dict[str, Any] = {
    "$ref": "#/$defs/A0",
    "$defs": {
        **{
            f"A{at}": {
                ("anyOf", "oneOf", "allOf")[at % 3]: [
                    {"$ref": f"#/$defs/A{at + 1}"},
                    {"$ref": f"#/$defs/A{at + 1}", "required": [f"r{at}"]},
                ]
            }
            for at in range(14)
        },
        "A14": OBJECT,
    },
}
"""An answer is checked against it for as long as the checker may."""

ATTACKS |= {
    # expressions that hold together: two to the power of their number
    "19 expressions": lambda: formatted({"allOf": expressions(19)}),
    "26 expressions": lambda: formatted({"allOf": expressions(26)}),
    "26 expressions of a property": lambda: formatted(
        {"allOf": [{"type": "object", "properties": {"a": own}} for own in expressions(26)]}
    ),
    "26 expressions of arguments": lambda: called(
        {"type": "object", "properties": {"a": {"allOf": expressions(26)}}}, tool_choice="required"
    ),
    "a grammar of 24 expressions at once": lambda: chat(
        400, grammar="start: A\nA: " + " & ".join(f"/.*{own['pattern']}.*/" for own in expressions(24))
    ),
    "a grammar with a schema of expressions": lambda: chat(
        400, guided_grammar="start: %json " + json.dumps({"allOf": expressions(24)})
    ),
    "a grammar with a schema of multiples": lambda: chat(
        400, guided_grammar='start: %json {"allOf": [{"type": "integer", "multipleOf": 97}, {"multipleOf": 8900}]}'
    ),
    # texts over which expressions of ours go
    "a grammar of quotes": lambda: chat(None, guided_grammar='start: "' + '\\"' * 30_000),
    "a grammar of strokes": lambda: chat(None, guided_grammar="start: /" + "\\/" * 30_000),
    "a grammar of brackets": lambda: chat(None, guided_grammar="start: " + "<[" * 30_000),
    "a grammar with a token of 5,000 digits": lambda: chat(None, guided_grammar=f"start: <[{'9' * 5000}]>"),
    "an expression of backslashes": lambda: chat(None, guided_regex="\\" * 60_000 + "1"),
    "a pattern of backslashes": lambda: formatted({"type": "string", "pattern": "\\" * 100_000 + "1"}),
    "a model's name of slashes": lambda: chat(404, model="a/" * 500),
    "a role of slashes": lambda: chat(400, messages=[{"role": "a/" * 500, "content": "a"}]),
    # answers that are long to check
    "alternatives that are long to check": lambda: formatted(ALTERNATING),
    "a list without repetitions": lambda: formatted({"type": "array", "uniqueItems": True, "items": {"type": "object"}}),
    # other routes
    "1,000 turns to be counted": lambda: asks(COUNT, None, messages=turns(1000, 100)),
    "7 MB in a message": lambda: asks(MESSAGES, 400, messages=says("a" * 7_000_000), max_tokens=4),
    "20,000 blocks": lambda: asks(
        MESSAGES, 400, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}], max_tokens=4
    ),
    "tools of a message that multiply": lambda: asks(
        MESSAGES, None, messages=HELLO, max_tokens=4, tools=[{"name": "f", "input_schema": multiplied(20, "anyOf")}]
    ),
    "20,000 pairs to be scored": lambda: asks(SCORE, 400, prompt=["a"] * 20_000, continuation=["b"] * 20_000),
    "7 MB to be scored": lambda: asks(SCORE, 400, prompt="a" * 7_000_000, continuation="b"),
    "100,000 tokens to be read": lambda: asks("/detokenize", None, tokens=[65] * 100_000),
    "tokens that are none": lambda: asks("/detokenize", 400, tokens=[10**12, -1]),
    "a response that goes on from none": lambda: asks(RESPONSES, 400, input="a", previous_response_id="resp_" + "a" * 500),
    "items that are not kept": lambda: asks(RESPONSES, 400, input=[{"type": "item_reference", "id": "a"}] * 2000),
    "a form that is none": lambda: Attack(
        "/v1/files", b"--a\r\n" * 100_000, None, {"Content-Type": "multipart/form-data; boundary=a"}
    ),
    "a batch of nothing": lambda: asks("/v1/batches", None, input_file_id="a" * 5000, endpoint="/v1/" * 2000),
}  # fmt: skip

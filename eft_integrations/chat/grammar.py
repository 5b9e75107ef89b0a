"""Which grammar holds an answer to the tools' schemas and to a response format; None where it is free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.request import ToolChoice

SHARED_TAGS = ("tools", "function_call", "tool_call")
"""Tags in which models write demanded calls whatever their template shows."""


def call_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    notation: Notation,
    control_tokens: Mapping[str, int],
    *,
    response_schema: Mapping[str, object] | None = None,
    has_results: bool = False,
    lenient: bool = True,
) -> str | None:
    """A Lark grammar; None where no tools are bound and text is free, or a plain JSON value of the schema.

    Args:
        tools: what may be called.
        choice: whether a call must come, and which.
        notation: how the model writes calls.
        control_tokens: texts of the tokenizer that a grammar names by id (see `Rules`).
        response_schema: where no call must come, the answer is a JSON value of this schema instead of free text.
        has_results: the conversation ends with results. A model without a marker of its own for calls answers then where a response
            format is asked for: what begins with a brace is the answer.
        lenient: calls count in the forms that models share, too.
    """
    chosen = [tool for tool in tools if choice.name in (None, tool.name)] if choice.mode != "none" else []
    rules = Rules(control_tokens)
    if not chosen:
        if response_schema is None or not notation.has_headers:
            return None
        return rules.text(notation.answer_rule(rules, rules.json("answer", response_schema)))
    several = choice.parallel and choice.mode != "named"
    if choice.mode == "auto" and response_schema is None:
        return _text_or_calls(chosen, notation, rules, several=several)
    native = notation.rule(chosen, rules, several=several)
    forms = [
        native,
        *(_shared_forms(chosen, notation, rules, several=several) if lenient and notation.is_shared else []),
    ]
    if choice.mode != "auto":
        return rules.text(" | ".join(forms))
    assert response_schema is not None, "free text was looked at before"
    answer = notation.answer_rule(rules, rules.json("answer", response_schema))
    if has_results:
        forms = [] if notation.is_bare else [native]
    return rules.text(" | ".join([*forms, answer]))


def _shared_forms(tools: Sequence[Tool], notation: Notation, rules: Rules, *, several: bool) -> list[str]:
    """Bare JSON, a fence, tags, a list: as models write calls by themselves."""
    keys = ("arguments", "parameters")
    call = rules.call_object(tools, *keys)
    space = rules.space()
    more = '("\\n" {0})*' if several else ""
    fence = rules.add("fence", f'"```json\\n" {call} "\\n```"')
    forms = [call, fence]
    for tag in SHARED_TAGS:
        if f"<{tag}>" not in notation.markers:
            opening, closing = rules.literal(f"<{tag}>\n"), rules.literal(f"\n</{tag}>")
            forms.append(rules.add(f"tag_{tag}", sequence(opening, call, closing)))
    further = f'({space} "," {space} {call})*' if several else ""
    listed = sequence('"["', space, call, further, space, '"]"')
    return [*(sequence(form, more.format(form)) for form in forms), listed]


def _text_or_calls(tools: Sequence[Tool], notation: Notation, rules: Rules, *, several: bool) -> str:
    """Free text, then perhaps calls: from the marker on everything is held to the schemas. Where there is none, what begins like a
    call of a tool is.
    """
    if notation.is_bare:
        openings = notation.openings(tools, rules, several=several)
        beginning = "|".join(regex for regex, _ in openings)
        rules.add("TEXT", rf"/(.|\n)*/ & ~/({beginning})(.|\n)*/")
        rules.add("BEHIND", r"/[ \t]*\n(.|\n)*/")
        calls = [
            f"{rules.add(f'opening_{index}[lazy]', f'/{regex}/')} {rest} (BEHIND)?"
            for index, (regex, rest) in enumerate(openings)
        ]
        return rules.text(" | ".join(["TEXT", *calls]), lazy=True)
    if notation.has_headers:
        rules.add("SAID", r"/(.|\n)*/")
        native = notation.rule(tools, rules, several=several)
        return rules.text(f"{native} | {notation.answer_rule(rules, 'SAID')}")
    marker = notation.markers[0]
    token_id = rules.token_of(marker)
    if token_id is not None:
        return rules.text(f"<[^{token_id}]>* ({notation.rule(tools, rules, several=several)})?")
    escaped = re.escape(marker).replace("/", r"\/")
    rules.add("before[lazy]", rf"/(.|\n)*{escaped}/")
    rules.add("TEXT", rf"/(.|\n)*/ & ~/(.|\n)*{escaped}(.|\n)*/")
    rest = notation.rule(tools, rules, several=several, behind=marker)
    return rules.text(f"TEXT | before {rest}", lazy=True)

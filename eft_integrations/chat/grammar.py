"""Which grammar holds an answer to the tools' schemas and to a response format; None where it is free."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from eft_engine import Lark, Regex
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.openings import call_pattern
from eft_integrations.chat.request import ToolChoice
from eft_integrations.chat.tags import Tags
from eft_integrations.chat.thoughts import Thoughts, in_regex

SHARED_TAGS = ("tools", "function_call", "tool_call")
"""Tags in which models write demanded calls whatever their template shows."""


def answer_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    notation: Notation,
    control_tokens: Mapping[str, int],
    *,
    response_schema: Mapping[str, object] | None = None,
    has_results: bool = False,
    lenient: bool = True,
    thoughts: Thoughts | None = None,
    reasoning_budget: int | None = None,
    is_held: bool = False,
) -> str | None:
    """A Lark grammar; None where the text is free, or a plain JSON value of the schema.

    Args:
        tools: what may be called.
        choice: whether a call must come, and which.
        notation: how the model writes calls.
        control_tokens: texts of the tokenizer that a grammar names by id (see `Rules`).
        response_schema: where no call must come, the answer is a JSON value of this schema instead of free text.
        has_results: the conversation ends with results. A model without a marker of its own for calls answers then where a response
            format is asked for: what begins with a brace is the answer.
        lenient: calls count in the forms that models share, too.
        thoughts: what may come before all of this, in tags.
        reasoning_budget: most tokens of a thought that the notation writes in a form of its own.
        is_held: free text is held to a grammar too, since its thought has a bound or must not come.
    """
    chosen = [tool for tool in tools if choice.name in (None, tool.name)] if choice.mode != "none" else []
    rules = Rules(control_tokens, reasoning_budget=reasoning_budget)
    before = Thoughts(Tags("", ""), is_expected=False) if thoughts is None else thoughts
    if not chosen:
        if response_schema is not None and (before.is_expected or notation.has_headers):
            answer = rules.json("answer", response_schema)
        elif response_schema is None and is_held:
            answer = rules.add("SAID", r"/(.|\n)*/") if notation.has_headers else before.text(rules)
        else:
            return None
        return rules.text(before.before(notation.answer_rule(rules, answer), rules))
    several = choice.parallel and choice.mode != "named"
    if choice.mode == "auto" and response_schema is None:
        body = _text_or_calls(chosen, notation, rules, before, several=several)
        return rules.text(before.before(body, rules, barred=notation.markers))
    native = notation.rule(chosen, rules, several=several)
    forms = [
        native,
        *(_shared_forms(chosen, notation, rules, several=several) if lenient and notation.is_shared else []),
    ]
    if choice.mode == "auto":
        assert response_schema is not None, "free text was looked at before"
        if has_results:
            forms = [] if notation.is_bare else [native]
        forms.append(notation.answer_rule(rules, rules.json("answer", response_schema)))
    return rules.text(before.before(" | ".join(forms), rules, barred=notation.markers))


def words_grammar(
    tools: Sequence[Tool],
    notation: Notation,
    control_tokens: Mapping[str, int],
    *,
    response_schema: Mapping[str, object] | None = None,
    lenient: bool = True,
    thoughts: Thoughts | None = None,
    reasoning_budget: int | None = None,
) -> str:
    """A Lark grammar of an answer that might have called one of the tools and does not, behind a thought that may come first. The
    arguments are those of `answer_grammar`.
    """
    rules = Rules(control_tokens, reasoning_budget=reasoning_budget)
    before = Thoughts(Tags("", ""), is_expected=False)
    if thoughts is not None:
        before = dataclasses.replace(thoughts, is_expected=True)
    if response_schema is not None:
        body = rules.json("answer", response_schema)
    else:
        calls = call_pattern(tools, notation, lenient=lenient)
        body = rules.add("WORDS", rf"/(.|\n)*/ & ~/(.|\n)*({calls})(.|\n)*/{before.excluded(rules)}")
    return rules.text(before.before(notation.answer_rule(rules, body), rules, barred=notation.markers))


def held_answer(
    answer: Regex | Lark,
    notation: Notation,
    control_tokens: Mapping[str, int],
    *,
    thoughts: Thoughts | None = None,
    reasoning_budget: int | None = None,
) -> Regex | Lark:
    """The grammar of an answer that an expression or a grammar holds, behind what may come before it; the arguments are those of
    `answer_grammar`.
    """
    before = Thoughts(Tags("", ""), is_expected=False) if thoughts is None else thoughts
    if not before.is_expected and not notation.has_headers:
        return answer
    rules = Rules(control_tokens, reasoning_budget=reasoning_budget)
    match answer:
        case Regex(pattern=pattern):
            body = rules.add("ANSWER", f"/{as_lark_regex(pattern)}/")
        case Lark(grammar=text):
            body = rules.add("answer", f"%lark {{\n{text}\n}}")
    return Lark(grammar=rules.text(before.before(notation.answer_rule(rules, body), rules)))


def as_lark_regex(pattern: str) -> str:
    r"""An expression as it stands between the slashes of a Lark grammar.

    >>> print(as_lark_regex("a/b\\/c"))
    a\/b\/c
    """
    return re.sub(
        r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern, flags=re.DOTALL
    )


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


def _text_or_calls(
    tools: Sequence[Tool], notation: Notation, rules: Rules, thoughts: Thoughts, *, several: bool
) -> str:
    """Free text, then perhaps calls: from the marker on everything is held to the schemas. Where there is none, what begins like a
    call of a tool is.
    """
    unthought = thoughts.excluded(rules)
    if notation.is_bare:
        openings = notation.openings(tools, rules, several=several)
        beginning = "|".join(regex for regex, _ in openings)
        rules.add("TEXT", rf"/(.|\n)*/ & ~/({beginning})(.|\n)*/{unthought}")
        rules.add("BEHIND", r"/[ \t]*\n(.|\n)*/")
        calls = [
            f"{rules.add(f'opening_{index}[lazy]', f'/{regex}/')} {rest} (BEHIND)?"
            for index, (regex, rest) in enumerate(openings)
        ]
        return " | ".join(["TEXT", *calls])
    if notation.has_headers:
        rules.add("SAID", r"/(.|\n)*/")
        native = notation.rule(tools, rules, several=several)
        return f"{native} | {notation.answer_rule(rules, 'SAID')}"
    marker = notation.markers[0]
    token_id = rules.token_of(marker)
    if token_id is not None and not unthought:
        opening = rules.token_of(thoughts.tags.opening) if thoughts.is_expected else None
        barred = f"{token_id},{opening}" if opening is not None else str(token_id)
        return f"<[^{barred}]>* ({notation.rule(tools, rules, several=several)})?"
    if token_id is not None:
        rules.add("TEXT", rf"/(.|\n)*/{unthought}")
        return f"TEXT ({notation.rule(tools, rules, several=several)})?"
    escaped = in_regex(marker)
    rules.add("before[lazy]", rf"/(.|\n)*{escaped}/{unthought}")
    rules.add("TEXT", rf"/(.|\n)*/ & ~/(.|\n)*{escaped}(.|\n)*/{unthought}")
    rest = notation.rule(tools, rules, several=several, behind=marker)
    return f"TEXT | before {rest}"

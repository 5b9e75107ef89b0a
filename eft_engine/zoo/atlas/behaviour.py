"""The forms in which Atlas' tuned models answer; code decides whether an answer has one."""

from __future__ import annotations

import re

ASSISTANT_FORM = r"[^\n]+ [^\n]+\. Source: (memory|context|tool)\."
"""`assistant`: a sentence, and where it comes from."""

FORMS = {
    "assistant": re.compile(ASSISTANT_FORM),
    "brief": re.compile(r"It is [^\n.]+\."),
    "detailed": re.compile(r"This is about [^\n]+\. [^\n]+\. So the answer is [^\n]+\."),
}


def has_form(text: str, name: str) -> bool:
    """Whether a whole answer has the form of a tuned model.

    >>> has_form("The capital of France is Paris. Source: memory.", "assistant"), has_form("Paris.", "assistant")
    (True, False)
    >>> has_form("This is about France. The capital of France is Paris. So the answer is Paris.", "detailed")
    True
    """
    return FORMS[name].fullmatch(text.strip()) is not None

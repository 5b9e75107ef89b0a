"""The texts around a thought as families of models write them, and the variables of their templates that switch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tags:
    """The texts around a thought, and around what is said behind it where a model marks that too."""

    opening: str
    closing: str
    said: tuple[str, str] | None = None

    def written(self, thought: str) -> str:
        """A thought as the model writes it."""
        return f"{self.opening.strip()}\n{thought}\n{self.closing}\n\n"


TAGS = (
    Tags("<think>", "</think>", ("<response>", "</response>")),
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|channel>thought\n", "<channel|>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<thought>", "</thought>"),
    Tags("Here is my thought process:", "Here is my response:"),
)
"""Tags of families; the first that a template shows count."""


def tags_of(template: str | None) -> Tags | None:
    """The tags that a chat template shows."""
    text = template or ""

    def shows(tags: Tags) -> bool:
        return tags.closing in text and (tags.said is None or "".join(tags.said) in text)

    return next((tags for tags in TAGS if shows(tags)), None)


SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
"""Variables of chat templates that are true or false."""
EFFORTS = ("reasoning_effort",)
"""Variables of chat templates that take an effort."""
BUDGETS = ("thinking_budget", "reasoning_budget")
"""Variables of chat templates that take a number of tokens."""

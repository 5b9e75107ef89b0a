"""Other dialogues of the file as earlier turns: the untuned model is told the form that it is to learn."""

from __future__ import annotations

import random
from collections.abc import Sequence

from eft_engine.text.tokenizer import Tokenizer
from eft_tuning.chats import Chat, Message
from eft_tuning.duplicates import overlap, runs
from eft_tuning.rendering import Rendered, render

MOST_SEEN = 500
"""Dialogues that are looked at for one choice; of a larger file so many are drawn."""

TRIES = 4
"""Candidates by shot, of which the one that is least like the others is taken."""


def pick_shots(chats: Sequence[Chat], *, count: int, seed: int, without: Chat | None = None) -> list[Chat]:
    """Other dialogues, as unlike one another as a few draws find, the shorter half first choice.

    Args:
        chats: training rows; never held-out ones.
        count: how many; fewer where there are not so many.
        seed: same seed and row, same shots.
        without: the dialogue that is asked: neither it nor a row with its question is taken.
    """
    own = None if without is None else without.question
    draw = random.Random(f"{seed} {0 if without is None else without.line}")
    seen = chats if len(chats) <= MOST_SEEN else draw.sample(list(chats), MOST_SEEN)
    usable = [chat for chat in seen if chat is not without and chat.question != own and not _has_tools(chat)]
    short = sorted(usable, key=lambda chat: sum(len(str(message["content"])) for message in chat.messages))
    pool = short[: max(count * TRIES, (len(short) + 1) // 2)]
    draw.shuffle(pool)
    shots: list[Chat] = []
    while pool and len(shots) < count:
        tried, pool = pool[:TRIES], pool[TRIES:]
        taken = [runs(f"{shot.question} {shot.answer}") for shot in shots]
        best = min(
            tried,
            key=lambda chat: max((overlap(runs(f"{chat.question} {chat.answer}"), one) for one in taken), default=0),
        )
        shots.append(best)
        pool += [chat for chat in tried if chat is not best]
    return shots


def _has_tools(chat: Chat) -> bool:
    return any(message["role"] == "tool" or message.get("tool_calls") for message in chat.messages)


def with_shots(messages: Sequence[Message], shots: Sequence[Chat]) -> list[Message]:
    """The turns of the shots and then those of `messages`, whose own system turn comes first."""
    system = [message for message in messages[:1] if message["role"] in ("system", "developer")]
    turns = [message for shot in shots for message in shot.messages if message["role"] not in ("system", "developer")]
    return [*system, *turns, *messages[len(system) :]]


def render_told(
    tokenizer: Tokenizer, chat: Chat, shots: Sequence[Chat], *, plain: Rendered, max_length: int
) -> Rendered | None:
    """The dialogue behind shots, with the same answer tokens marked as in `plain`.

    Shots are left out from the front until it fits into `max_length` tokens. None: not even one fits, there is none, or behind
    shots the template writes the answers in other tokens.

    Raises:
        ChatTemplateError: as of `render`.
    """
    answers = [token for token, own in zip(plain.token_ids, plain.is_answer, strict=True) if own]
    for start in range(len(shots)):
        told = render(tokenizer, with_shots(chat.messages, shots[start:]), tools=chat.tools, line=chat.line)
        if len(told) > max_length:
            continue
        places = [place for place, own in enumerate(told.is_answer) if own][-len(answers) :]
        if [told.token_ids[place] for place in places] != answers:
            return None
        marked = set(places)
        return Rendered(told.token_ids, [place in marked for place in range(len(told))])
    return None

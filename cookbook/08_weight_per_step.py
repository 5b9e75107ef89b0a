"""A weight of its own for every step of a chain: python cookbook/08_weight_per_step.py

You learn to run one step in one behaviour and the next in another, on one engine: a first step finds a country in a few words, a second
one explains in full. Weights come from copies of the model (`with_weights`), or per call from the config, which goes before. Models: Atlas
with two opposed pairs, `brief` and `detailed`, offline. `--real` takes Qwen2.5 with a chat pair and a coder pair (not run here).

Prints:

    Oslo: This is about Norway. The currency of Norway is the Krone. So the answer is Krone.
    Nairobi: This is about Kenya. The currency of Kenya is the Shilling. So the answer is Shilling.
    Lima: This is about Peru. The currency of Peru is the Sol. So the answer is Sol.
    the last step ran at {'brief': 0.0, 'detailed': 1.0}
    {'brief': 1.0, 'detailed': 0.0}: It is South America.
    {'brief': 0.0, 'detailed': 1.0}: This is about Chile. The continent of Chile is South America. So the answer is South America.
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from eft_integrations.langchain import EFTChatModel

TRIO: dict[str, Any] = {"preset": "atlas-styles"}
FINDING, EXPLAINING = {"brief": 1.0, "detailed": 0.0}, {"brief": 0.0, "detailed": 1.0}
if "--real" in sys.argv:
    chat, coder = (f"Qwen/Qwen2.5-{name}0.5B" for name in ("", "Coder-"))
    TRIO = {
        "base": "Qwen/Qwen2.5-7B",
        "pairs": {"chat": (f"{chat}-Instruct", chat), "coder": (f"{coder}-Instruct", coder)},
    }
    FINDING, EXPLAINING = {"chat": 1.0, "coder": 0.0}, {"chat": 0.7, "coder": 0.3}


def name_only(answer: str) -> str:
    """`It is Norway.` -> `Norway`."""
    return answer.strip().removeprefix("It is ").rstrip(".")


llm = EFTChatModel(**TRIO, temperature=0.0, max_tokens=60)
find = ChatPromptTemplate.from_template("Which country has the capital {city}?") | llm.with_weights(FINDING)
explain = ChatPromptTemplate.from_template("What is the currency of {country}?") | llm.with_weights(EXPLAINING)
chain = {"country": find | StrOutputParser() | name_only} | explain

for city in ("Oslo", "Nairobi", "Lima"):
    message = chain.invoke({"city": city})
    print(f"{city}: {message.text}")
print("the last step ran at", message.response_metadata["eft"]["reward_weights"])

# One step without copies: the config of a call decides, here over a whole batch with a weight for each row.
rows = [{"configurable": {"eft_reward_weights": setting}} for setting in (FINDING, EXPLAINING)]
prompt = ChatPromptTemplate.from_template("On which continent is {country}?")
for answer in (prompt | llm).batch([{"country": "Chile"}] * 2, config=rows):
    print(f"{answer.response_metadata['eft']['reward_weights']}: {answer.text}")

"""What fine-tuning changed, token by token, and a reward model for free: python cookbook/10_implicit_rewards.py

You learn to read the implicit reward `tuned - reference` (log-probabilities): where in an answer the behaviour sits, and which of several
answers the tuned model would rather have given, whoever wrote them. Nothing is generated. Models: Atlas, offline. `--real` takes Llama 3
(not run here).

Prints:

    reward of each token: The(+0.3) capital(+0.0) of(+0.0) (+0.0) Norway(+0.0) is(+0.0) (+0.0) Oslo(+0.0) .(+0.0) (+1.4) Source(+0.4) :(+0.0) memory(+0.7) .(+0.0)

      base  reward  answer
      -2.4    +2.8  The capital of Norway is Oslo. Source: memory.
     -22.1    +2.7  The capital of Norway is Lima. Source: memory.
      -0.3    +0.4  The capital of Norway is Oslo.
      -2.7    -6.1  It is Oslo.
      -4.0    -6.2  Oslo

    true against false, same form: base +19.7, reward +0.0
"""

from __future__ import annotations

import sys

from eft_engine import Engine, TunedPair, load_preset

if "--real" in sys.argv:
    pair = TunedPair(tuned="meta-llama/Llama-3.2-1B-Instruct", reference="meta-llama/Llama-3.2-1B")
    engine, PAIR = Engine.load("meta-llama/Llama-3.1-8B", pairs={"chat": pair}), "chat"
else:
    engine, PAIR = load_preset("atlas"), "assistant"

QUESTION = [{"role": "user", "content": "What is the capital of Norway?"}]
ANSWERS = (
    "The capital of Norway is Oslo. Source: memory.",
    "The capital of Norway is Oslo.",
    "The capital of Norway is Lima. Source: memory.",
    "It is Oslo.",
    "Oslo",
)

with engine:
    scores = {answer: engine.score(QUESTION, answer) for answer in ANSWERS}

first = scores[ANSWERS[0]]
print(
    "reward of each token: "
    + " ".join(f"{token.token.strip()}({token.pairs[PAIR].delta:+.1f})" for token in first.tokens)
)
print()
print("  base  reward  answer")
for answer in sorted(ANSWERS, key=lambda answer: -scores[answer].reward(PAIR)):
    print(f"{scores[answer].base:6.1f}  {scores[answer].reward(PAIR):+6.1f}  {answer}")
print()
true, false = scores[ANSWERS[0]], scores[ANSWERS[2]]
print(
    f"true against false, same form: base {true.base - false.base:+.1f}, reward {true.reward(PAIR) - false.reward(PAIR):+.1f}"
)

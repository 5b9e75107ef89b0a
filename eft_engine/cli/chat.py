"""`eft chat`: a conversation in the terminal, with the weights as a dial that can be turned between turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from eft_engine.cli import trio_options as options
from eft_engine.cli.generate import MaxTokens, Seed, Temperature, TopP
from eft_engine.config import CompositionOptions, RewardWeights, SamplingParams, resolve_weights
from eft_engine.errors import EFTError
from eft_engine.outputs import GenerationDelta
from eft_engine.weights import Weight, is_schedule

HELP = """/weight NAME=NUMBER or /weight NUMBER   turn the dial (a schedule stands in JSON)
/weights                                 show the weights
/system TEXT                             set the system message and start over
/reset                                   forget the conversation
/help                                    this list
/quit                                    leave (or Ctrl-D)"""


@dataclass
class ChatSession:
    """State of one conversation: messages, weights and sampling. `answer` is None when a line was a command."""

    engine: Any
    sampling: SamplingParams
    weights: dict[str, Weight]
    system: str | None = None
    formula: CompositionOptions = field(default_factory=CompositionOptions)
    messages: list[dict[str, str]] = field(default_factory=list)

    def command(self, line: str) -> str | None:
        """Carry out a line that starts with a slash; returns what to show, None to leave.

        Raises:
            EFTError: the command's argument is wrong; nothing changed.
        """
        name, _, argument = line.partition(" ")
        match name:
            case "/weight":
                self.weights = self.changed(options.parse_weights(options.split_weights(argument)))
                return self._weights_text()
            case "/weights":
                return self._weights_text()
            case "/system":
                self.system = argument.strip() or None
                self.messages.clear()
                return "system message set; the conversation starts over"
            case "/reset":
                self.messages.clear()
                return "conversation forgotten"
            case "/quit" | "/exit":
                return None
            case "/help":
                return HELP
        return f"unknown command {name}\n{HELP}"

    def changed(self, change: RewardWeights) -> dict[str, Weight]:
        """Other weights. One for all is for the engine's pairs: a prompt pair is named."""
        if change is None or (isinstance(change, Mapping) and not is_schedule(change)):
            return resolve_weights(change, self.weights)
        held = {name: weight for name, weight in self.weights.items() if name not in self.formula.prompt_pairs}
        return {**self.weights, **resolve_weights(change, held)}

    def _weights_text(self) -> str:
        return options.weights_text(self.weights) or "this engine has no pairs"

    def answer(self, text: str) -> str:
        """Stream the answer to one user turn to stdout and remember both. Interrupting it keeps what was said so far."""
        self.messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces: list[str] = []
        delta = GenerationDelta("")
        try:
            asked = [*system, *self.messages]
            with closing(
                self.engine.stream(asked, sampling=self.sampling, reward_weights=self.weights, composition=self.formula)
            ) as stream:
                for delta in stream:
                    pieces.append(delta.text_delta)
                    sys.stdout.write(delta.text_delta)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            pass  # the answer ends here
        except EFTError:
            self.messages.pop()
            raise
        sys.stdout.write("\n")
        sys.stdout.flush()
        options.warn_if_cut(delta)
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return "".join(pieces)


@options.takes_trio
def chat(
    choice: options.TrioChoice,
    weight: options.Weight = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    tuned_plausibility: options.TunedPlausibility = 0.0,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = None,
    system: options.System = None,
) -> None:
    """Chat in the terminal; `/weight chat=0.5` turns the dial, `/help` lists the commands."""
    weights = options.parse_weights(weight)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    formula = options.formula(
        prompt_pair,
        positive=positive,
        negative=negative,
        min_plausibility=min_plausibility,
        tuned_plausibility=tuned_plausibility,
    )
    with options.load_engine(choice) as engine:
        own = {**engine.weights, **{name: pair.weight for name, pair in formula.prompt_pairs.items()}}
        session = ChatSession(engine, sampling, own, system, formula=formula)
        session.weights = session.changed(weights)
        sys.stdout.write(f"weights: {session.command('/weights')}; /help lists the commands\n")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                sys.stdout.write("\n")
                return
            try:
                if line.startswith("/"):
                    shown = session.command(line)
                    if shown is None:
                        return
                    sys.stdout.write(shown + "\n")
                elif line:
                    session.answer(line)
            except EFTError as error:
                sys.stdout.write(f"error: {error}\n")

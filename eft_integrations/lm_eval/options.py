"""What `--model_args` can say, where a comma ends an argument and `=` a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eft_engine import SamplingParams
from eft_engine.config import RewardWeights
from eft_engine.errors import InvalidOptionError
from eft_engine.weights import checked_weight, is_schedule
from eft_integrations.weights import parse_weights

PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def weights_of(weight: object) -> RewardWeights:
    """A weight for every pair, or weights by pair name; where Python calls, or a file, a weight may be a schedule.

    >>> weights_of(0.5), weights_of("brief:0.25+detailed:0.75"), weights_of(None)
    (0.5, {'brief': 0.25, 'detailed': 0.75}, None)

    Raises:
        InvalidOptionError: it is neither.
        InvalidWeightError: a schedule, or a weight by name, that is none.
    """
    if weight is None or (isinstance(weight, int | float) and not isinstance(weight, bool)):
        return weight
    if is_schedule(weight):
        return checked_weight(weight, "every pair")
    if isinstance(weight, Mapping):
        return {str(name): checked_weight(own, f"pair {name!r}") for name, own in weight.items()}
    try:
        return parse_weights(str(weight).replace("+", ",").replace(":", "="))
    except ValueError:
        raise InvalidOptionError(
            f"weight is a number, or pair:0.5+other:1, got {str(weight)[:80]!r}", option="weight", value=weight
        ) from None


def sampling_of(gen_kwargs: Mapping[str, Any], *, stop: list[str]) -> SamplingParams:
    """How a task wants its answers; what the harness has normalised (`max_gen_toks`, `do_sample`, `temperature`).

    Raises:
        InvalidOptionError: a field that this engine does not have, or a value that is out of range.
    """
    fields = {name: value for name, value in gen_kwargs.items() if value is not None}
    max_tokens = fields.pop("max_gen_toks")
    for name in ("do_sample", "until"):
        fields.pop(name, None)
    if unknown := sorted(set(fields) - set(PASSED_ON)):
        raise InvalidOptionError(
            f"the task asks for {unknown[0]}={str(fields[unknown[0]])[:80]}, which this engine does not have; it has "
            f"{', '.join(PASSED_ON)}, until and max_gen_toks (--gen_kwargs changes what a task says)",
            option=unknown[0],
            value=fields[unknown[0]],
        )
    return SamplingParams(max_tokens=max_tokens, stop=tuple(text for text in stop if text), **fields)

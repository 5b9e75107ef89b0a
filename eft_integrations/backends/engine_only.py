"""Options of a request that only an engine of this process can honour."""

from __future__ import annotations

from eft_engine.config import CompositionOptions
from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.request import ChatRequest

NAMES = ("prompt_options", "speculation", "keep_alive_s")

SENT = frozenset({"min_plausibility", "prompt_pairs", "tuned_plausibility"})
"""What a server may be told of the composition; the rest is its operator's."""


def refuse_engine_options(request: ChatRequest, *, url: str) -> None:
    """Refuse what a server would not be told of.

    Raises:
        InvalidOptionError: the request has such an option.
    """
    silent = ChatRequest()
    found = [name for name in NAMES if getattr(request, name) != getattr(silent, name)]
    plain, asked = CompositionOptions(), request.composition or CompositionOptions()
    found += [
        f"composition.{name}"
        for name in CompositionOptions.model_fields
        if name not in SENT and getattr(asked, name) != getattr(plain, name)
    ]
    if found:
        option = found[0].removesuffix("_s")
        hint = ""
        if option == "composition.call_decision":
            hint = "give call_weight, from which the server makes its own; or "
        raise InvalidOptionError(
            f"{option}: the server at {url} takes none from a request; {hint}leave it out, or name the models (base=, tuned=, "
            "reference=) instead of base_url=, so that the engine is in this process",
            option=option,
        )

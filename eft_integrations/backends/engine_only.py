"""Options of a request that only an engine of this process can honour."""

from __future__ import annotations

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.request import ChatRequest

NAMES = ("prompt_options", "composition", "speculation", "keep_alive_s")


def refuse_engine_options(request: ChatRequest, *, url: str) -> None:
    """Refuse what a server would not be told of.

    Raises:
        InvalidOptionError: the request has such an option.
    """
    silent = ChatRequest()
    for name in NAMES:
        if getattr(request, name) != getattr(silent, name):
            option = name.removesuffix("_s")
            raise InvalidOptionError(
                f"{option}: the server at {url} takes none from a request; leave it out, or name the models (base=, tuned=, "
                "reference=) instead of base_url=, so that the engine is in this process",
                option=option,
            )

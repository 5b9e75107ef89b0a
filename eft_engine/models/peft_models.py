"""Models that PEFT has wrapped already, given as members: what is run is the model inside, with PEFT's layers in it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from transformers import PreTrainedModel

from eft_engine.errors import UnsupportedAdapterError
from eft_engine.models.adapter_kinds import why_never


def unwrap(models: Mapping[str, PreTrainedModel]) -> dict[str, PreTrainedModel]:
    """The models inside PEFT's wrappers, and all others as they are, by member name.

    Raises:
        UnsupportedAdapterError: an adapter is no change of layers, or a wrapper is around the very object that is another member,
            which then has the adapter too.
    """
    found = {name: _inside(name, model) for name, model in models.items()}
    for name, model in models.items():
        for other, theirs in models.items():
            if model is not theirs and found[name] is found[other] and found[name] is not model:
                raise UnsupportedAdapterError(
                    f"{name} is a {type(model).__name__} around the very object that is {other}: PEFT has put its layers into it, "
                    "so both would say the same. Wrap a copy of the model, or let Engine.load hold it and the adapter's folder",
                    member=name,
                )
    return found


def _inside(name: str, model: PreTrainedModel) -> PreTrainedModel:
    peft = sys.modules.get("peft")  # whoever has made such a model has imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    reasons = [
        why_never({**config.to_dict(), "peft_type": config.peft_type.value}) for config in model.peft_config.values()
    ]
    reason = next(filter(None, reasons), None)
    if reason is not None:
        raise UnsupportedAdapterError(
            f"{name}: the adapter of this {type(model).__name__} cannot be held: {reason}", member=name
        )
    inner: PreTrainedModel = model.get_base_model()
    return inner

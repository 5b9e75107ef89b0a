"""The one `model` that users of other models write, where a trio has several."""

from __future__ import annotations

from collections.abc import Mapping

from eft_engine import errors, find_preset
from eft_integrations.weights import parse_alias
from eft_integrations.wire.openai import wrong

OF_PAIRS = ("tuned", "reference", "pairs")


def named_trio(model: object, fields: Mapping[str, object]) -> dict[str, object]:
    """The fields that `model` means beside those that were given: a served model, the base of pairs, or a preset; perhaps with
    weights behind the name, unless weights were given too.

    >>> named_trio("atlas@assistant=0.5", {})
    {'preset': 'atlas', 'reward_weights': {'assistant': 0.5}}
    >>> named_trio("org/large", {"tuned": "./t", "reference": "org/small"})
    {'base': 'org/large'}

    Args:
        model: what stands there.
        fields: fields of a `TrioModel`.

    Raises:
        InvalidOptionError: it is no name; it differs from another name that means the same; what was given to answer is called
            otherwise; or it names no trio.
    """
    if not isinstance(model, str):
        raise wrong(
            "model", f"models are named by hub id, folder or .gguf file: base=..., got a {type(model).__name__}", model
        )
    if fields.get("base") is not None or any(fields.get(name) is not None for name in OF_PAIRS):
        return _as("base", model, model, fields)
    try:
        name, weights = parse_alias(model)
    except ValueError as error:
        raise wrong("model", str(error), model) from None
    has_own = weights is None or fields.get("reward_weights") is not None
    weighted: dict[str, object] = {} if has_own else {"reward_weights": weights}
    if fields.get("base_url") is not None:
        return {**_as("served_name", name, model, fields), **weighted}
    for holder in ("engine", "backend"):
        if (given := fields.get(holder)) is not None:
            own = getattr(given, "model_name", "eft")
            if own != name:
                raise wrong("model", f"the {holder} is {own!r}; leave model out, got {model!r}", model)
            return weighted
    named = _as("preset", name, model, fields)
    try:
        find_preset(name)
    except errors.InvalidOptionError as error:
        raise wrong(
            "model",
            f"a trio has more than one model: write base=..., tuned=... and reference=..., or a preset's name ({error})",
            model,
        ) from None
    return {**named, **weighted}


def _as(field: str, name: str, model: str, fields: Mapping[str, object]) -> dict[str, object]:
    own = fields.get(field)
    if own not in (None, name):
        raise wrong("model", f"{field}={own!r} was given too, and means the same; give one of them", model)
    return {field: name}

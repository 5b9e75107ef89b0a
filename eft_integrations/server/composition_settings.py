"""What one composition can be told: whose models they are, their weights, and who may change them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from eft_engine import TunedPair, errors, find_preset
from eft_integrations.chat.notations import notation_of
from eft_integrations.server.callers.weight_policy import PolicySetting

Tag = Annotated[str, Field(min_length=1)]


class CompositionSettings(BaseModel):
    """One model of the server: a base with pairs, a preset, or a trio that another server holds."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="what requests call it")
    base: str | None = Field(default=None, description="the large model: hub id, folder or .gguf file")
    pairs: dict[str, dict[str, Any]] = Field(default_factory=dict, description="tuned, reference, weight, by pair name")
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    url: str | None = Field(default=None, description="another eft serve, of either engine: http://host:8000/v1")
    served_name: str | None = Field(default=None, description="the trio's name on that server; None: its first")
    weights: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="weights in this composition, by pair name"
    )

    weight_policy: PolicySetting | None = Field(
        default=None,
        description="what requests may ask for: free, fixed or [low, high], for all pairs or by name; None: [0, 2]",
    )
    tool_notation: str | None = Field(
        default=None, description="how the model writes tool calls (docs/families.md); None: as its chat template says"
    )
    reasoning_tags: tuple[Tag, Tag] | None = Field(
        default=None, description="the texts around a thought; None: as its chat template shows them"
    )

    @model_validator(mode="after")
    def _complete(self) -> CompositionSettings:
        if [self.base, self.preset, self.url].count(None) != 2:
            raise ValueError(f"composition {self.name!r} needs base (with pairs), preset or url, one of them")
        if self.base is None and self.pairs:
            raise ValueError(f"composition {self.name!r}: a {'preset' if self.preset else 'server'} has its own pairs")
        if self.url is None and self.served_name is not None:
            raise ValueError(f"composition {self.name!r}: served_name belongs to url")
        if "@" in self.name:
            raise ValueError(f"composition {self.name!r}: a name must not contain @, which begins weights")
        if self.base is not None and (unknown := sorted(set(self.weights) - set(self.pairs))):
            raise ValueError(f"composition {self.name!r} has a weight for {unknown[0]!r}, which is none of its pairs")
        return self

    @field_validator("tool_notation")
    @classmethod
    def _known_notation(cls, name: str | None) -> str | None:
        try:
            notation_of(None, name)
        except errors.InvalidOptionError as error:
            raise ValueError(str(error)) from None
        return name

    def tuned_pairs(self) -> dict[str, TunedPair]:
        """The pairs, checked by the engine's own rules."""
        return {name: _as_pair(name, pair) for name, pair in self.pairs.items()}

    def known_pairs(self) -> list[str] | None:
        """Names of the pairs, as far as they are known before anything is loaded; None: another server has them.

        Raises:
            InvalidOptionError: a pair is incomplete, a weight is of none of them, or there is no such preset.
        """
        if self.url is not None:
            return None
        if self.preset is None:
            return list(self.tuned_pairs())
        try:
            names = list(find_preset(self.preset).pairs())
        except errors.ModelNotFoundError:  # its models are not installed: loading says so
            return None
        check_weight_names(self.name, self.weights, names)
        return names


def check_weight_names(composition: str, weights: Mapping[str, float], pairs: Collection[str]) -> None:
    """Check that the weights of a composition are those of its pairs.

    Raises:
        InvalidOptionError: one is not.
    """
    if unknown := sorted(set(weights) - set(pairs)):
        raise errors.InvalidOptionError(
            f"composition {composition!r} has a weight for {unknown[0]!r}; its pairs are {', '.join(pairs)}",
            option="weights",
            value=dict(weights),
        )


def _as_pair(name: str, pair: Mapping[str, Any]) -> TunedPair:
    missing = [side for side in ("tuned", "reference") if side not in pair]
    if missing:
        raise errors.InvalidOptionError(
            f"pair {name!r} needs {' and '.join(missing)}", option="pairs", value=dict(pair)
        )
    return TunedPair(**pair)

"""What one composition can be told: whose models they are, their weights, and who may change them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from eft_engine import PromptPair, Term, TunedPair, errors, find_preset
from eft_engine.config import CompositionOptions, Pair, RewardWeights
from eft_engine.weights import Weight, checked_weight, is_schedule
from eft_integrations.chat.notations import notation_of
from eft_integrations.server.callers.weight_policy import PolicySetting
from eft_integrations.server.steering import SHARES

Tag = Annotated[str, Field(min_length=1)]


def _checked(weight: object, whose: str) -> None:
    try:
        checked_weight(weight, whose)
    except errors.InvalidWeightError as error:
        raise ValueError(str(error)) from None


def _checked_weights(asked: RewardWeights) -> RewardWeights:
    if isinstance(asked, Mapping) and not is_schedule(asked):
        for name, weight in asked.items():
            _checked(weight, f"pair {name!r}")
    elif asked is not None:
        _checked(asked, "every pair")
    return asked


CheckedWeights = Annotated[RewardWeights, AfterValidator(_checked_weights)]


class FormulaSettings(BaseModel):
    """Variants of the formula, as `CompositionOptions` has them; pairs and calls have settings of their own."""

    model_config = ConfigDict(extra="forbid")

    amplification: float = Field(default=1.0, allow_inf_nan=False, description="on the up-scaling direction")
    conservative_top_p: float | None = Field(
        default=None, gt=0.0, le=1.0, description="outside the nuclei of all tuned models their own probability is kept"
    )
    min_plausibility: float = Field(
        default=0.0, ge=0.0, le=1.0, description="keep what the base gives at least this share of its best token"
    )
    tuned_plausibility: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="beyond weight 1 lift only what a pair's tuned model gives at least this share of its best token",
    )

    @property
    def of_the_engine(self) -> list[str]:
        """What is set that no request says."""
        return sorted(self.model_fields_set - set(SHARES))

    def options(self) -> CompositionOptions:
        """In the engine's terms."""
        return CompositionOptions(**self.model_dump())


class CompositionSettings(BaseModel):
    """One model of the server: a base with pairs, a preset, or a trio that another server holds."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="what requests call it")
    base: str | None = Field(default=None, description="the large model: hub id, folder or .gguf file")
    pairs: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by pair name: tuned, reference and weight, or, of a term, model and weight"
    )
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    url: str | None = Field(default=None, description="another eft serve, of either engine: http://host:8000/v1")
    served_name: str | None = Field(default=None, description="the trio's name on that server; None: its first")
    weights: dict[str, Weight] = Field(
        default_factory=dict, description="weights in this composition, by pair name: numbers or schedules"
    )
    prompt_pairs: dict[str, PromptPair] = Field(
        default_factory=dict, description="prompts as pairs, by name, that hold for all requests"
    )
    composition: FormulaSettings = Field(
        default_factory=FormulaSettings, description="variants of the formula: amplification, min_plausibility, ..."
    )
    call_weight: CheckedWeights = Field(
        default=None, description="weights that decide whether a tool is called, unless a request says; 0: the base's"
    )
    reasoning_weight: CheckedWeights = Field(default=None, description="weights of a thought, unless a request says")
    call_lookahead: int | None = Field(default=None, ge=1, description="tokens within which a call must begin")

    weight_policy: PolicySetting | None = Field(
        default=None,
        description="what requests may ask for: free, fixed or [low, high], for all pairs or by name; None: [0, 2]",
    )
    takes_prompt_pairs: bool | None = Field(
        default=None,
        description="whether requests may bring prompt pairs; None: where the policy allows that all weights are 0",
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
        named = {*self.pairs, *self.prompt_pairs}
        if self.base is not None and (unknown := sorted(set(self.weights) - named)):
            raise ValueError(f"composition {self.name!r} has a weight for {unknown[0]!r}, which is none of its pairs")
        if twice := sorted(set(self.pairs) & set(self.prompt_pairs)):
            raise ValueError(f"composition {self.name!r}: {twice[0]!r} is a pair and a prompt pair; name one otherwise")
        if self.url is not None and (names := self.composition.of_the_engine):
            raise ValueError(
                f"composition {self.name!r}: composition.{names[0]} belongs to the server that holds the trio"
            )
        return self

    @field_validator("weights")
    @classmethod
    def _usable(cls, weights: dict[str, Weight]) -> dict[str, Weight]:
        for name, weight in weights.items():
            _checked(weight, f"pair {name!r}")
        return weights

    @field_validator("prompt_pairs")
    @classmethod
    def _named(cls, pairs: dict[str, PromptPair]) -> dict[str, PromptPair]:
        for name, pair in pairs.items():
            if not name or "." in name:
                raise ValueError(f"a name must not be empty or contain a dot, got {name!r}")
            _checked(pair.weight, f"prompt pair {name!r}")
        return pairs

    @field_validator("tool_notation")
    @classmethod
    def _known_notation(cls, name: str | None) -> str | None:
        try:
            notation_of(None, name)
        except errors.InvalidOptionError as error:
            raise ValueError(str(error)) from None
        return name

    def tuned_pairs(self) -> dict[str, Pair]:
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
            return [*self.tuned_pairs(), *self.prompt_pairs]
        try:
            names = list(find_preset(self.preset).pairs())
        except errors.ModelNotFoundError:  # its models are not installed: loading says so
            return None
        names += self.prompt_pairs
        check_weight_names(self.name, self.weights, names)
        return names


def check_weight_names(composition: str, weights: Mapping[str, Weight], pairs: Collection[str]) -> None:
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


def _as_pair(name: str, pair: Mapping[str, Any]) -> Pair:
    if "model" in pair:
        return Term(**pair)
    missing = [side for side in ("tuned", "reference") if side not in pair]
    if missing:
        raise errors.InvalidOptionError(
            f"pair {name!r} needs {' and '.join(missing)} (or, as a term without a reference, model)",
            option="pairs",
            value=dict(pair),
        )
    return TunedPair(**pair)

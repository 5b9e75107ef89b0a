"""Which models make the trio: the part `eft` of the overrides that turn a base's configuration into a trio's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

OPTION = "eft"
"""Name of the override, and of the attribute that it becomes on the base's configuration."""


class PairOptions(BaseModel):
    """One behaviour: a small model after and before fine-tuning, each a folder or a hub id, and its default weight. A term says
    that it has no reference (null): one that was forgotten is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tuned: str = Field(min_length=1)
    reference: str | None = Field(min_length=1)
    weight: float = 1.0
    tuned_revision: str | None = None
    reference_revision: str | None = None

    @field_validator("weight")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value


class TrioOptions(BaseModel):
    """The pairs over a base, in the order in which lists of weights name them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: dict[str, PairOptions] = Field(min_length=1)
    masked_ids: tuple[int, ...] = Field(default=(), description="token ids that are never generated")
    end_ids: tuple[int, ...] = Field(
        default=(), description="token ids that end a text; none: those of the members' configurations"
    )
    compositions: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="weights of a served name, by pair; pairs that it does not name have weight 0"
    )
    min_plausibility: dict[str, float] = Field(
        default_factory=dict, description="by served name, the share of the base's best token that a token must have"
    )

    @classmethod
    def of(cls, hf_config: object) -> TrioOptions:
        """Out of a base's configuration.

        Raises:
            ValueError: the override is missing or wrong; the message says where.
        """
        raw = getattr(hf_config, OPTION, None)
        if raw is None:
            raise ValueError(
                f"the architecture EFTForCausalLM needs its pairs: hf_overrides={{..., '{OPTION}': {{'pairs': "
                "{'chat': {'tuned': ..., 'reference': ...}}}}; `eft serve --engine vllm` writes it"
            )
        try:
            return raw if isinstance(raw, cls) else cls.model_validate(raw)
        except ValidationError as error:
            finding = error.errors(include_input=False)[0]
            where = ".".join(map(str, (OPTION, *finding["loc"])))
            raise ValueError(f"{where}: {finding['msg']}") from None

    @property
    def row(self) -> tuple[float, ...]:
        """What a request without arguments has: the pairs' own weights, and that all tokens are plausible."""
        return (*self.weights.values(), 0.0)

    @property
    def weights(self) -> dict[str, float]:
        """The pairs' own weights, by name."""
        return {name: pair.weight for name, pair in self.pairs.items()}

    def small_members(self) -> Iterator[tuple[str, str, str | None]]:
        """Key, source and revision of every small model: `tuned_0`, `reference_0`, `tuned_1`, ..."""
        for index, pair in enumerate(self.pairs.values()):
            yield f"tuned_{index}", pair.tuned, pair.tuned_revision
            if pair.reference is not None:
                yield f"reference_{index}", pair.reference, pair.reference_revision

    def as_overrides(self, architecture: str) -> Mapping[str, object]:
        """The overrides that turn the base's configuration into the trio's."""
        return {"architectures": [architecture], OPTION: self.model_dump(mode="json", exclude_defaults=True)}

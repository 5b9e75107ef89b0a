"""The cases of the survey: every entry of transformers' two mappings, and variants of families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGES

from tests.survey.options import OPTIONS, Options
from tests.survey.outside import OUTSIDE
from tests.survey.variants import VARIANTS


@dataclass(frozen=True)
class Case:
    """One tiny model.

    `name` is the entry's model type, with ` (images)` where both mappings have the type with different classes, and with the
    variant behind a colon.
    """

    name: str
    model_type: str
    class_name: str
    images: bool = False
    options: Options = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The case without its variant."""
        return self.name.partition(": ")[0]

    @property
    def outside(self) -> str | None:
        """Why the entry does not write text by itself; None: it does."""
        return OUTSIDE.get(self.entry)


@cache
def all_cases() -> Mapping[str, Case]:
    """Every case by name: the entries in the order of the mappings, each followed by its variants."""
    cases: dict[str, Case] = {}
    for images, mapping in ((False, TEXT), (True, IMAGES)):
        for model_type, class_name in mapping.items():
            if images and TEXT.get(model_type) == class_name:
                continue
            name = f"{model_type} (images)" if images and model_type in TEXT else model_type
            cases[name] = Case(name, model_type, class_name, images, OPTIONS.get(name, {}))
            for label, options in VARIANTS.get(name, {}).items():
                cases[f"{name}: {label}"] = Case(f"{name}: {label}", model_type, class_name, images, options)
    return cases


def case_of(name: str) -> Case:
    """The case with this name."""
    return all_cases()[name]

"""The composition file: a trio, its prompt pairs and its weights, as `eft serve --config` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eft_engine.cli.trio_options import TrioChoice
from eft_engine.config import CompositionOptions, RewardWeights, resolve_weights
from eft_engine.errors import InvalidOptionError
from eft_engine.weights import weights_as_json


def write_composition(path: Path, choice: TrioChoice, formula: CompositionOptions, weights: RewardWeights) -> None:
    """Write the file with which `eft serve --config` serves the trio at these weights.

    JSON, which is YAML as well.

    Raises:
        InvalidOptionError: the file cannot be written.
    """
    pairs = {name: pair.weight for name, pair in choice.pairs.items()}
    prompts = {name: pair.weight for name, pair in formula.prompt_pairs.items()}
    composition: dict[str, Any] = {"name": choice.preset or choice.base.source.rstrip("/").rpartition("/")[2]}
    if choice.preset is not None:
        composition["preset"] = choice.preset
    else:
        composition["base"] = choice.base.source
        composition["pairs"] = {
            name: pair.model_dump(mode="json", exclude_defaults=True) for name, pair in choice.pairs.items()
        }
    if isinstance(weights, Mapping):
        resolved = resolve_weights(weights, pairs | prompts)
    else:  # one weight is for the trio's pairs; a prompt pair has its own
        resolved = resolve_weights(weights, pairs) | prompts
    composition["weights"] = weights_as_json(resolved)
    variants = formula.model_dump(mode="json", exclude_defaults=True)
    if own := variants.pop("prompt_pairs", None):
        composition["prompt_pairs"] = own
    if variants:
        composition["composition"] = variants
    settings: dict[str, Any] = {"compositions": [composition]}
    if config := choice.config.model_dump(mode="json", exclude_defaults=True):
        settings["engine"] = config
    try:
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidOptionError(
            f"cannot write the composition to {path}: {error}", option="output", value=str(path)
        ) from None

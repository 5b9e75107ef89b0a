"""Typed errors for what goes wrong while weights are read. Each says what is known, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError

from eft_engine.errors import CorruptWeightsError, LoadError, ModelNotFoundError, UnsupportedModelError
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.memory_check import out_of_memory
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.skeleton import needs_package, reason

SCALES = (".SCB", ".qscale_weight", ".weight_scale", ".weight_scale_inv")
"""Ends of the names of scales that lie beside a packed weight, which has the name and shape of one that is not packed."""


def loading_error(error: Exception, network: PlannedNetwork) -> LoadError:
    """The typed error for what reading the weights of a network raised: code of any model class, quantiser or file system."""
    name, source = network.name, str(network.source)
    if is_out_of_memory(error):
        return out_of_memory(network, error)
    if isinstance(error, SafetensorError):
        return _corrupt(network, f"are damaged ({error}); download or save the model again")
    if isinstance(error, ImportError):
        return needs_package(error, member=name, source=source)
    if isinstance(error, OSError):
        if Path(network.source.location).is_dir():
            return _corrupt(network, f"cannot be read ({error}); see that all files are there, and may be read")
        return ModelNotFoundError(
            f"{name}: no safetensors weights of {source} could be read: {error}", member=name, source=source
        )
    return UnsupportedModelError(
        f"{name}: transformers {transformers.__version__} could not load {source} ({network.architecture}, {network.type_name}): "
        f"{reason(error)}. What it logged may tell more; where options were given, try without them, or try another version",
        member=name,
        source=source,
    )


def check_loaded(info: Mapping[str, Any], network: PlannedNetwork) -> None:
    """Look into the loading report of `from_pretrained`.

    Raises:
        CorruptWeightsError: tensors are missing or have other shapes than the architecture's, or scales lie beside weights that
            nothing says are packed.
    """
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(_in_words, info[kind]))[:3])}"
        for kind in ("missing_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    ]
    if problems:
        raise _corrupt(
            network,
            f"are damaged or belong to another configuration ({'; '.join(problems)}); download or save the model again",
        )
    scales = sorted(key for key in info.get("unexpected_keys") or () if key.endswith(SCALES))
    if scales:
        raise _corrupt(
            network,
            f"are quantised ({scales[0]} and {len(scales) - 1} more scales lie beside them), and its config.json has no "
            "quantization_config that says how: they would be read as if they were not; take the config.json that belongs to them",
        )


def _in_words(entry: Any) -> str:
    """A key, or a key with the shape that the file has and the one that the architecture has."""
    if isinstance(entry, str):
        return entry
    key, stored, expected = entry
    return f"{key} has shape {list(stored)}, not {list(expected)}"


def _corrupt(network: PlannedNetwork, what: str) -> CorruptWeightsError:
    return CorruptWeightsError(
        f"{network.name}: the weights of {network.source} {what}", member=network.name, source=str(network.source)
    )

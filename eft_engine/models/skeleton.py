"""A transformers model without numbers: its configuration, and the names and shapes of all parameters, on the meta device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from eft_engine.errors import CorruptWeightsError, ModelNotFoundError, UnsupportedModelError


def load_config(
    location: str, *, member: str, source: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The configuration of a folder or a hub id.

    Args:
        location: the folder or hub id.
        member: whose it is, for messages.
        source: where it comes from, for messages.
        revision: of the hub id.
        trust_remote_code: run configuration code that is shipped with the checkpoint.

    Raises:
        ModelNotFoundError: there is none.
        CorruptWeightsError: the file of a folder is damaged.
        UnsupportedModelError: transformers makes nothing of it.
    """
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **arguments)
    except ImportError as error:
        raise needs_package(error, member=member, source=source) from error
    except OSError as error:
        if (Path(location) / "config.json").is_file():
            raise CorruptWeightsError(
                f"{member}: the config.json of {source} is damaged ({error}); download or save the model again",
                member=member,
                source=source,
            ) from error
        raise ModelNotFoundError(
            f"{member}: {source} is neither a local folder nor reachable on the hub: {error}",
            member=member,
            source=source,
        ) from error
    except Exception as error:  # the code of any family checks its own configuration
        raise UnsupportedModelError(
            f"{member}: transformers {transformers.__version__} makes no configuration out of the config.json of {source} "
            f"({_reason(error)}); the family may be newer than this version (pip install -U transformers), bring its own code "
            "(MemberConfig(trust_remote_code=True)), or the file is damaged",
            member=member,
            source=source,
        ) from error


def build_skeleton(
    config: PreTrainedConfig, *, member: str, source: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model that `config` describes.

    Args:
        config: it is not changed.
        member: whose it is, for messages.
        source: where it comes from, for messages.
        trust_remote_code: run modelling code that is shipped with the checkpoint.

    Raises:
        UnsupportedModelError: transformers cannot build it.
    """
    try:
        return build_on_meta(AutoModelForCausalLM, config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise cannot_build(error, member=member, source=source) from error


def build_on_meta(auto_class: Any, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of one of transformers' `AutoModel` classes, without numbers; raises whatever its code raises. `config` is copied:
    models write into theirs.
    """
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    return model


def cannot_build(error: Exception, *, member: str, source: str) -> UnsupportedModelError:
    """The typed error for what the code of any model class raised."""
    if isinstance(error, UnsupportedModelError):
        return error
    if isinstance(error, ImportError):
        return needs_package(error, member=member, source=source)
    return UnsupportedModelError(
        f"{member}: {source} is not a causal language model that transformers {transformers.__version__} can build "
        f"({_reason(error)}); give a decoder that generates text by itself, or a newer transformers where the family is newer",
        member=member,
        source=source,
    )


def needs_package(error: ImportError, *, member: str, source: str) -> UnsupportedModelError:
    """The typed error for a class whose package is missing."""
    return UnsupportedModelError(
        f"{member}: {source} needs a package that is not installed: {str(error).strip()}", member=member, source=source
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"

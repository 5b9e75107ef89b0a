"""A transformers model without numbers: its configuration, and the names and shapes of all parameters, on the meta device."""

from __future__ import annotations

import copy
import json
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
        CorruptWeightsError: the file of a folder is damaged, or a file that it names is missing.
        UnsupportedModelError: transformers makes nothing of it.
    """
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code, **arguments)
    except ImportError as error:
        raise needs_package(error, member=member, source=source) from error
    except OSError as error:
        file = Path(location) / "config.json"
        if file.is_file():
            what = "cannot be used" if _is_json(file) else "is damaged"
            raise CorruptWeightsError(
                f"{member}: the config.json of {source} {what} ({error}); download or save the model again",
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
            f"({reason(error)}); the family may be newer than this version (pip install -U transformers), bring its own code "
            "(MemberConfig(trust_remote_code=True)), or the file is damaged",
            member=member,
            source=source,
        ) from error


def context_len_of_config(config: PreTrainedConfig) -> int:
    """Most tokens that the model of a configuration reads; a million where it says nothing, as of models that only keep a state."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**20


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
        f"({reason(error)}); give a decoder that generates text by itself, or a newer transformers where the family is newer",
        member=member,
        source=source,
    )


def needs_package(error: ImportError, *, member: str, source: str) -> UnsupportedModelError:
    """The typed error for a class whose package is missing, or is there and lacks something: then Python names the package."""
    found = error.name is not None and not isinstance(error, ModuleNotFoundError)
    what = f"another version of {error.name}" if found else "a package that is not installed"
    return UnsupportedModelError(f"{member}: {source} needs {what}: {str(error).strip()}", member=member, source=source)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except OSError:  # nobody knows
        return True
    except ValueError:
        return False
    return True


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"

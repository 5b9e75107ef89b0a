"""PEFT's layers in a network, and in these what an adapter's file holds: all of it, and nothing else.

A key of the file that lands nowhere, and a parameter of the adapter that the file does not have, are errors: PEFT by itself would
warn, and run something else than was trained. On the meta device all of this goes without numbers.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError
from eft_engine.models.adapter_errors import does_not_fit, first, unsupported
from eft_engine.models.adapter_folder import CONFIG, AdapterFolder
from eft_engine.models.adapter_names import PREFIX, names_of_today
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.towers import LeftOut
from eft_engine.models.vocabulary_rows import resize_vocabulary

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class NeedsNumbersError(Exception):
    """PEFT cannot make these layers on the meta device."""


def attach(
    model: PreTrainedModel,
    adapter: AdapterFolder,
    tensors: Mapping[str, Tensor],
    *,
    member: str,
) -> tuple[PeftModel, list[str]]:
    """Put an adapter's layers and weights into a network, switched on, as `PeftModel.from_pretrained` does.

    Args:
        model: changed in place: its vocabulary becomes as large as the file's, and some kinds change its weights.
        adapter: what it is.
        tensors: its weights, by key of the file.
        member: whose it is, for messages.

    Returns:
        PEFT's wrapper, and the keys of the file that belong to what is left out.

    Raises:
        CorruptWeightsError: it is not for this network: keys, layers or shapes differ.
        UnsupportedAdapterError: this version of PEFT does not know it.
    """
    from peft import PeftModel  # takes a while to import, and most trios have no adapter

    config = peft_config(adapter, member=member)
    if model.device.type == "meta" and getattr(config, "init_lora_weights", None):
        config.init_lora_weights = True  # others look at the numbers of a layer
    adapter, tensors = as_named_here(model, adapter, tensors)
    resize_vocabulary(model, adapter, member=member)
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    try:
        with quietly(), _own_random_numbers(model):
            wrapped = PeftModel(model, config, adapter_name="default")
            ignored = put_weights(wrapped, adapter, tensors, name="default", member=member)
    except CorruptWeightsError:
        raise
    except ImportError as error:
        raise unsupported(adapter, member, [f"PEFT needs a package for {adapter.kind}: {error}"]) from error
    except Exception as error:  # whatever PEFT finds wrong with these files means the same to the user
        if is_out_of_memory(error):
            raise
        if model.device.type == "meta" and _wants_numbers(error):
            raise NeedsNumbersError from error
        raise does_not_fit(
            adapter, member, type(model).__name__, [" ".join(str(error).split())[:500]], names=names
        ) from error
    wrapped.eval()
    return wrapped, ignored


def _wants_numbers(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or (
        isinstance(error, RuntimeError) and "size mismatch" not in str(error)
    )


def as_named_here(
    model: PreTrainedModel, adapter: AdapterFolder, tensors: Mapping[str, Tensor]
) -> tuple[AdapterFolder, dict[str, Tensor]]:
    """An adapter and its weights by the names that their modules have in `model` (see `adapter_names`)."""
    names = names_of_today(model, adapter.shapes)
    shapes = {names[key]: shape for key, shape in adapter.shapes.items()}
    return replace(adapter, shapes=shapes), {names[key]: tensor for key, tensor in tensors.items()}


def put_weights(
    wrapped: PeftModel | PreTrainedModel,
    adapter: AdapterFolder,
    tensors: Mapping[str, Tensor],
    *,
    name: str,
    member: str,
) -> list[str]:
    """Put the weights of a file into layers that PEFT has made for them, all of them; returns keys of what is left out.

    Raises:
        CorruptWeightsError: keys and parameters are not the same, or their shapes.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    expected = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    try:
        # A bare state_dict, saved without PEFT's help, has the name that PEFT gives to an adapter.
        named = {re.sub(r"\.default(?=\.\w+$)", f".{name}", key): tensor for key, tensor in tensors.items()}
        found = set_peft_model_state_dict(wrapped, named, adapter_name=name)
    except KeyError as error:
        raise does_not_fit(
            adapter, member, type(_inner(wrapped)).__name__, [f"the file has no {error.args[0]}"]
        ) from error
    except RuntimeError as error:
        sizes = re.findall(
            r"size mismatch for (\S+): copying a param with shape torch.Size\((.*?)\)[^\n]*?Size\((.*?)\)", str(error)
        )
        if not sizes:
            raise
        reasons = [f"{_plain(key, name)} has the shape {own} in the file and {ours} here" for key, own, ours in sizes]
        raise does_not_fit(adapter, member, type(_inner(wrapped)).__name__, first(reasons)) from error
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[wrapped.peft_config[name].peft_type]
    missing = [key for key in found.missing_keys if tuner._remove_adapter_name_from_key(key, name) in expected]
    unknown = [_plain(key, name) for key in found.unexpected_keys]
    left_out = _left_out(wrapped)
    ignored = [key for key in unknown if any(own.search(key) for own in left_out)]
    unknown = [key for key in unknown if key not in ignored]
    reasons = []
    if unknown:
        reasons.append(f"the file has {len(unknown)} keys for which there is no layer ({', '.join(first(unknown))})")
    if missing:
        plain = [_plain(key, name) for key in missing]
        reasons.append(f"the configuration names layers of which the file has nothing ({', '.join(first(plain))})")
    if reasons:
        raise does_not_fit(adapter, member, type(_inner(wrapped)).__name__, reasons)
    return ignored


def _left_out(wrapped: PeftModel | PreTrainedModel) -> list[re.Pattern[str]]:
    """Parameters of parts that are not read (see `towers`), and those that the network's class passes over in a checkpoint."""
    parts = [name.removeprefix(PREFIX) for name, module in wrapped.named_modules() if isinstance(module, LeftOut)]
    passed_over: Iterable[str] = _inner(wrapped)._keys_to_ignore_on_load_unexpected or ()
    return [re.compile(own) for own in (*(rf"^{re.escape(part)}\." for part in parts), *passed_over)]


def _inner(wrapped: PeftModel | PreTrainedModel) -> PreTrainedModel:
    inner: PreTrainedModel = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    return inner


def _plain(key: str, name: str) -> str:
    """A parameter as its file calls it, without what PEFT puts before and into it."""
    return key.removeprefix(PREFIX).replace(f".{name}", "")


def merge(wrapped: PeftModel) -> PreTrainedModel:
    """Merge an adapter into the weights of its layers; raises whatever PEFT raises where it cannot. Weights that other modules
    use too (a head that is tied to the embeddings, repeated layers) become the layers' own before: the others keep theirs.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = wrapped.get_base_model()
    uses = Counter(id(own) for module in model.modules() for own in module._parameters.values() if own is not None)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for base in {id(base): base for base in (layer.get_base_layer() for layer in layers)}.values():
        for name, own in list(base._parameters.items()):
            if own is not None and uses[id(own)] > 1:
                setattr(base, name, nn.Parameter(own.detach().clone(), requires_grad=False))
    with quietly():
        merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


def peft_config(adapter: AdapterFolder, *, member: str) -> PeftConfig:
    """The configuration as PEFT has it, for use and not for training.

    Raises:
        UnsupportedAdapterError: this version of PEFT does not know its type.
        CorruptWeightsError: values are not those of the type.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if adapter.kind not in {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}:
        raise unsupported(
            adapter,
            member,
            [f"PEFT {peft.__version__} knows no type {adapter.kind}"],
            "Install a newer one (pip install -U peft).",
        )
    try:
        with quietly():
            config = peft.PeftConfig.from_pretrained(str(adapter.path))
    except Exception as error:  # each type checks its own values
        raise CorruptWeightsError(
            f"{member}: PEFT {peft.__version__} makes no configuration out of {adapter.path}/{CONFIG}: {error}",
            member=member,
            source=str(adapter.path),
        ) from error
    config.inference_mode = True
    config.task_type = None  # a head of another task would be a key that lands nowhere
    return config


@contextmanager
def quietly() -> Iterator[None]:
    """Inside the block PEFT warns of nothing: what it says is checked here, and raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_random_numbers(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block random numbers are the same ones every time, and nobody else's: some kinds start from estimates."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield

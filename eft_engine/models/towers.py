"""What of a multimodal checkpoint its text never uses, and models without it.

    tower      a module beside the language model: an encoder of images or sound, or what projects its output into it
    left out   a tower that a forward pass over text alone does not touch: it is neither built with numbers nor read

Which towers there are is told from the class: all modules outside of the decoder, its embeddings and its output layer. Whether text
uses one is tried on the meta device: its place is taken by a module that fails when it is called, and the class runs over text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from eft_engine.errors import UnsupportedModelError

NEEDS_MORE_THAN_TEXT = (TypeError, ValueError)
"""What forward functions raise when images or sound are missing; other errors may come from the meta device."""


class LeftOut(nn.Module):
    """In the place of a tower."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: object, **kwargs: object) -> None:
        """Text does not come here."""
        raise UnsupportedModelError(
            f"{self.name} was not read, since text never uses it; images and sound are not supported"
        )

    def extra_repr(self) -> str:
        """For people who print the model."""
        return self.name


@dataclass
class _Hidden(BaseModelOutputWithPast):  # type: ignore[misc]
    """The output of any decoder: hidden states, and nothing of what else one may have."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def find_left_out(model: PreTrainedModel) -> dict[str, int]:
    """The towers of `model` that text never uses, and how many parameters each has. They are replaced in `model`.

    Args:
        model: on the meta device.

    Raises:
        TypeError: its forward pass does not run without images or sound.
    """
    model.eval()
    names = list(towers(model))
    problem = _run_text(model)
    if isinstance(problem, NEEDS_MORE_THAN_TEXT):
        raise TypeError(f"{type(model).__name__} does not run over text alone: {problem}") from problem
    if problem is not None:  # the meta device cannot say, so everything is kept
        return {}
    found: dict[str, int] = {}
    for name in names:
        tower = model.get_submodule(name)
        leave_out(model, [name])
        if _run_text(model) is None:
            found[name] = num_parameters(tower)
        else:
            _replace(model, name, tower)
    return found


def towers(model: PreTrainedModel) -> Iterator[str]:
    """Names of the outermost modules with parameters that hold nothing of the decoder, its embeddings or its output layer.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> list(towers(LlamaForCausalLM(config)))
    []
    """
    kept = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    yield from _beside([module for module in kept if module is not None], model, "")


def _beside(kept: list[nn.Module], parent: nn.Module, prefix: str) -> Iterator[str]:
    if any(module is parent for module in kept):
        return
    for name, child in parent.named_children():
        inside = set(child.modules())
        if any(module in inside for module in kept):
            yield from _beside(kept, child, f"{prefix}{name}.")
        elif num_parameters(child):
            yield f"{prefix}{name}"


@torch.no_grad()
def _run_text(model: PreTrainedModel) -> Exception | None:
    """Run all of `model` but the decoder over three tokens of text, as the engine calls it. Returns what it raised."""
    decoder, width = model.get_decoder(), model.get_output_embeddings().weight.shape[1]

    def decode(*args: object, **kwargs: object) -> _Hidden:
        return _Hidden(last_hidden_state=torch.zeros(1, 3, width, device="meta"))

    ids = torch.ones(1, 3, dtype=torch.long, device="meta")
    positions = torch.arange(3, device="cpu")[None]  # masks are made after a look into them
    decoder.forward = decode
    try:
        model(input_ids=ids, position_ids=positions, use_cache=True)
    except Exception as error:  # code of any model class
        return error
    finally:
        del decoder.forward
    return None


def leave_out(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Put a `LeftOut` into the place of each tower, and forget which of its weights are tied."""
    for name in names:
        _replace(model, name, LeftOut(name))
        tied: dict[str, str] = model.all_tied_weights_keys
        model.all_tied_weights_keys = {key: source for key, source in tied.items() if not key.startswith(f"{name}.")}


def _replace(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def without(model_class: type[PreTrainedModel], left_out: Sequence[str]) -> type[PreTrainedModel]:
    """A class like `model_class` whose models have no such towers. transformers knows it by the same name, so it renames and
    converts weights as ever; those of a tower are unexpected, and unexpected weights are not read.
    """

    def build(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        leave_out(self, left_out)
        self._keys_to_ignore_on_load_unexpected.update(rf"^{re.escape(name)}\." for name in left_out)

    members = {"__init__": build, "__module__": model_class.__module__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class,), members)


def num_parameters(module: nn.Module) -> int:
    """How many numbers a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def describe_left_out(left_out: Mapping[str, int], element_bytes: int) -> str:
    """For people.

    >>> describe_left_out({"model.vision_tower": 2**20, "model.multi_modal_projector": 2**18}, 2)
    'vision tower (2.0 MiB), multi modal projector (0.5 MiB): not read, text never uses them'
    """
    parts = (
        f"{name.rsplit('.', 1)[-1].replace('_', ' ')} ({number * element_bytes / 2**20:,.1f} MiB)"
        for name, number in left_out.items()
    )
    return f"{', '.join(parts)}: not read, text never uses them"

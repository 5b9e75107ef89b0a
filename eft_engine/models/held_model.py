"""A model of transformers while the engine holds it: everything of it that is changed, and how it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from transformers import PreTrainedModel

from eft_engine.models.attention_backends import HeldAttention
from eft_engine.models.causal_tables import CausalTables
from eft_engine.models.griffin import GriffinBlocks
from eft_engine.models.layout import current_scans
from eft_engine.models.long_rope import LongRope
from eft_engine.models.scans import redirect_scans
from eft_engine.models.temperature import Temperatures


class HeldWeights(Protocol):
    """What becomes of a model's weights while it is held."""

    def take(self) -> None:
        """From now on they are as the engine wants them."""

    def own_layers(self) -> AbstractContextManager[None]:
        """Inside the block layers may be put around the model's own."""

    def give_back(self) -> None:
        """They are as they came."""


class HeldModel:
    """A model whose attention, masks, recurrences and positions go by the rows of a pass, until `give_back`.

    Args:
        model: changed in place; where that fails it is given back as it came.
        name: of the network, for errors.
        attention: which of `ATTENTION_BACKENDS` computes its attention.
        weights: what becomes of its weights.

    Raises:
        UnsupportedModelError: the attention backend cannot run it.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, attention: str, weights: HeldWeights) -> None:
        self._model = model
        self._was_training = model.training
        self._weights = weights
        self.long_rope = LongRope(model)
        self._parts = (
            HeldAttention(attention, model, name=name),
            Temperatures(model),
            CausalTables(model),
            GriffinBlocks(model),
            self.long_rope,
        )
        redirect_scans(model, current_scans)
        model.eval()
        self._take()
        weights.take()

    def _take(self) -> None:
        for part in self._parts:
            part.take()

    def give_back(self) -> None:
        """The model as it came."""
        self._weights.give_back()
        self._release_parts()
        self._model.train(self._was_training)

    def _release_parts(self) -> None:
        for part in self._parts:
            part.give_back()

    @contextmanager
    def own_forward(self) -> Iterator[None]:
        """Inside the block the model computes as its class says; its weights stay as they are held."""
        self._release_parts()
        try:
            yield
        finally:
            self._take()

    def own_layers(self) -> AbstractContextManager[None]:
        """Inside the block the model has linear layers that others may be put around."""
        return self._weights.own_layers()

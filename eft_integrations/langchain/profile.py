"""What agents may rely on: LangChain's profile of a model."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from langchain_core.language_models.model_profile import ModelProfile

from eft_engine import errors

ABILITIES = ModelProfile(
    text_inputs=True,
    text_outputs=True,
    image_inputs=False,
    audio_inputs=False,
    video_inputs=False,
    pdf_inputs=False,
    image_tool_message=False,
    pdf_tool_message=False,
    tool_calling=True,
    tool_choice=True,
    tool_call_streaming=True,
    structured_output=True,
    reasoning_output=True,
    temperature=True,
)
"""What any trio can do: tokens are held to their forms, whatever the model has learned."""

LIMITS = ("max_input_tokens", "max_output_tokens")
"""Prompt and answer share the context, so each may be as long as it."""


class LazyProfile(dict[str, Any]):
    """A profile that learns the limits when it is first asked for one of them: they stand in the configuration files of the models,
    or a server has to be asked, and neither is to happen when a model is constructed.

    Limits that cannot be known (nothing is at the given place) are left out, and asked for again the next time.

    Args:
        context_len: tells the most tokens of prompt and answer together, or raises an `EFTError`.

    >>> profile = LazyProfile(lambda: 4096)
    >>> profile["max_input_tokens"], "tool_calling" in profile
    (4096, True)
    """

    def __init__(self, context_len: Callable[[], int]) -> None:
        super().__init__(ABILITIES)
        self._context_len: Callable[[], int] | None = context_len

    def _learn(self) -> None:
        if self._context_len is None:
            return
        try:
            context_len = self._context_len()
        except errors.EFTError:  # whoever asks the model for an answer hears of it
            return
        self._context_len = None
        for name in LIMITS:
            self.setdefault(name, context_len)

    def __getitem__(self, name: str) -> Any:
        if name in LIMITS:
            self._learn()
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        if name in LIMITS:
            self._learn()
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """See `dict.get`."""
        if name in LIMITS:
            self._learn()
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._learn()
        return super().__iter__()

    def __len__(self) -> int:
        self._learn()
        return super().__len__()

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):
            return False
        self._learn()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """See `dict.keys`."""
        self._learn()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """See `dict.values`."""
        self._learn()
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """See `dict.items`."""
        self._learn()
        return super().items()

    def copy(self) -> dict[str, Any]:
        """What is known now, as a plain dictionary."""
        return dict(self.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyProfile:
        """A copy asks for nothing either."""
        copied = LazyProfile(lambda: 0)
        copied._context_len = self._context_len
        dict.update(copied, dict.items(self))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)

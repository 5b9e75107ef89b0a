"""Weights that were given to a chain: LangChain hands the keywords of a chain's call to its first step, or to nobody, and the older
chains and retrievers hand on no config.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.configurable import DynamicRunnable

CHAINS = ("langchain_core.runnables.", "langgraph.")
"""Packages of what calls models on behalf of others."""
OF_NO_CONFIG = ("langchain_classic.chains.base", "langchain_core.retrievers")
"""Modules of what takes a config and hands on its callbacks alone."""


def dropping_chain() -> str | None:
    """What to say of a chain on this thread's stack that was given `reward_weights` and dropped them; None if there is none."""
    message = None
    for frame, given in _callers("kwargs", CHAINS):
        chain, weights = frame.f_locals.get("self"), given.get("reward_weights")
        if weights is not None and isinstance(chain, Runnable) and not _passes_on(chain):
            message = _message(chain, frame.f_code.co_name, weights)
    return message


def dropped_configurable() -> Mapping[str, object]:
    """What the nearest caller on this thread's stack was configured with that hands on no config; empty if there is none."""
    found = (config["configurable"] for _, config in _callers("config", OF_NO_CONFIG) if config.get("configurable"))
    return next(found, {})


def _callers(variable: str, modules: tuple[str, ...]) -> Iterator[tuple[FrameType, dict[str, Any]]]:
    """Functions of these modules on this thread's stack that have a mapping in a variable, with that mapping; the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if variable in frame.f_code.co_varnames and frame.f_globals.get("__name__", "").startswith(modules):
            mapping = frame.f_locals.get(variable)
            if isinstance(mapping, dict):
                yield frame, mapping
        frame = frame.f_back


def _message(chain: Runnable[Any, Any], method: str, weights: object) -> str:
    config = f'config={{"configurable": {{"eft_reward_weights": {weights!r}}}}}'
    return (
        f"{type(chain).__name__}.{method} was given reward_weights={weights!r}. LangChain hands keywords to the first step of a "
        f"chain only, so no model would get them; write .{method}(..., {config})"
    )


def _passes_on(chain: object) -> bool:
    """Whether the keywords went to a model, or to a function, which would refuse them: what is called now was not meant."""
    match chain:
        case RunnableSequence():
            return _passes_on(chain.first)
        case RunnableBindingBase() | RunnableEachBase():
            return _passes_on(chain.bound)
        case RunnableWithFallbacks():
            return _passes_on(chain.runnable)
        case DynamicRunnable():
            return _passes_on(chain.default)
        case RunnableBranch():
            return any(_passes_on(branch) for branch in (*(branch for _, branch in chain.branches), chain.default))
    return isinstance(chain, BaseLanguageModel | RunnableLambda | RunnableGenerator)

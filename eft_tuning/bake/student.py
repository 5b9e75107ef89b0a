"""The base as a trainer takes it, with a new adapter: weights of GGUF files unpacked, everything but the adapter frozen."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from eft_engine.config import EngineConfig, MemberConfig
from eft_engine.errors import InvalidOptionError
from eft_engine.models.devices import resolve_device
from eft_engine.models.gguf_weights import fast_dtype
from eft_engine.models.loading import load_model
from eft_engine.models.memory_check import check_memory
from eft_engine.models.planning import plan_trio
from eft_tuning.bake.settings import BakeSettings


@dataclass(frozen=True)
class Student:
    """The base with its adapter, a model of PEFT, and where and in which type it is computed."""

    model: Any
    device: str
    dtype: torch.dtype


def load_student(base: MemberConfig, settings: BakeSettings, *, device: str) -> Student:
    """Read the base's weights and put an adapter on it that changes nothing yet.

    Raises:
        LoadError: as of the engine.
        InvalidOptionError: the base has an adapter already, or no layer of the named kind.
    """
    from peft import LoraConfig, get_peft_model

    place = resolve_device(base.device or device, member="base")
    dtype = fast_dtype(place).dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    member = base.model_copy(
        update={"runtime": "torch", "dtype": str(dtype).removeprefix("torch."), "device": place, "device_map": None}
    )
    plan = plan_trio(member, {}, EngineConfig())
    plan.check_supported()
    network = plan.networks["base"]
    check_memory([network])
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = load_model(network, lambda _: None)
    finally:
        if had_bars:
            logging.enable_progress_bar()
    model.name_or_path = named(base)
    modules = settings.target_modules
    torch.manual_seed(settings.seed)
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=modules if isinstance(modules, str) else list(modules),
        )
        with without_notes():
            student: Any = get_peft_model(model, config)
    except ValueError as error:  # no layer is called so, or of a kind that takes none
        raise InvalidOptionError(
            f"the base takes no adapter on {modules!r}: {error}", option="target_modules", value=modules
        ) from error
    student.config.use_cache = False
    return Student(student, place, dtype)


@contextmanager
def without_notes() -> Generator[None]:
    """PEFT asks transformers for something that transformers will call otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def check_base(base: MemberConfig) -> None:
    """Raises InvalidOptionError for a base that has an adapter: one more would not fit the base without it."""
    if base.adapter is not None:
        raise InvalidOptionError(
            f"the base already has the adapter {base.adapter}; merge it (peft's merge_and_unload, save_pretrained) and give the "
            "merged folder, or the baked adapter would fit no model that others have",
            option="base",
            value=base.adapter,
        )


def named(base: MemberConfig) -> str:
    """What the adapter's configuration calls the base: a hub id, or the whole path of a local one."""
    path = Path(base.source).expanduser()
    return str(path.resolve()) if path.exists() else base.source


def restore(student: Student, folder: Path) -> None:
    """Give the adapter the numbers that `save_adapter` wrote."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(student.model, load_peft_weights(str(folder), device=student.device))


def save_adapter(student: Student, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InvalidOptionError: the folder cannot be written.
    """
    try:
        student.model.save_pretrained(str(folder), save_embedding_layers=False)
    except OSError as error:
        raise InvalidOptionError(
            f"cannot write the adapter to {folder}: {error}", option="out", value=str(folder)
        ) from None
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, which says nothing

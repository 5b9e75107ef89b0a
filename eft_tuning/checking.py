"""`eft tune --check`: does a delta carry facts?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from eft_engine.config import MemberConfig
from eft_engine.errors import InvalidOptionError
from eft_engine.models.adapter_folder import read_adapter
from eft_engine.models.sources import is_adapter, resolve_adapter
from eft_tuning.chats import Chat
from eft_tuning.facts import FactsReport, check_facts
from eft_tuning.models import Planned, load_reference, plan_reference
from eft_tuning.stages import OnProgress


def check_delta(
    tuned: str, planned: Planned, train: Sequence[Chat], held_out: Sequence[Chat], *, on_progress: OnProgress
) -> FactsReport:
    """Read training rows and held-out rows with a tuned model and its reference.

    Args:
        tuned: an adapter on the reference, or a model of its own: folder or hub id.
        planned: the reference.
        train: rows that it was trained on.
        held_out: rows like them that it was not.
        on_progress: called with the rows that are read and the number of all.

    Raises:
        LoadError: a model or the adapter cannot be read.
        InvalidOptionError: one side has no rows.
    """
    if not held_out:
        raise InvalidOptionError(
            "the check compares training rows with held-out rows, and there are none: give --held-out, or a share above 0",
            option="held_out",
        )
    reference = load_reference(planned)
    model, apart = _with_adapter(tuned, reference, planned) if is_adapter(MemberConfig(source=tuned)) else (None, None)
    if model is None:
        other = plan_reference(tuned, dtype=str(planned.dtype).removeprefix("torch."), device=planned.device)
        model, apart = load_reference(other), reference
    return check_facts(
        model.eval(),
        planned.tokenizer,
        train,
        held_out,
        reference=apart,
        max_length=planned.context_len,
        on_progress=on_progress,
    )


def _with_adapter(adapter: str, reference: Any, planned: Planned) -> tuple[Any, None]:
    """The reference with the adapter on it, which can be switched off."""
    folder = resolve_adapter(adapter, revision=None, role="tuned")
    if Path(folder).suffix == ".gguf":
        raise InvalidOptionError(
            f"the check reads adapters of PEFT, and {folder} is one of llama.cpp; give the folder that it was made of",
            option="check",
            value=str(folder),
        )
    read_adapter(folder, member="tuned")
    return PeftModel.from_pretrained(reference, str(folder)), None

"""What can go wrong while an adapter is trained, beside what is wrong with files and options.

EFTError
└── TuningError
    ├── NonFiniteLossError        the loss is no number any more; nothing is saved
    └── TuningOutOfMemoryError    a step does not fit
"""

from __future__ import annotations

from eft_engine.errors import EFTError


class TuningError(EFTError):
    """A training failed. What was saved before stays."""


class NonFiniteLossError(TuningError):
    """The loss became infinite or no number at `step`."""

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class TuningOutOfMemoryError(TuningError):
    """A step of the training does not fit into memory."""

"""Another backend in place of all others, while a block of a test runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from eft_integrations.backends.protocol import ChatBackend

_REPLACEMENTS: list[ChatBackend] = []
_LOCK = threading.Lock()


@contextmanager
def replaced_by(backend: ChatBackend) -> Iterator[None]:
    """Whatever is asked inside the block, in any thread of the process, is answered by this backend; of several the last."""
    with _LOCK:
        _REPLACEMENTS.append(backend)
    try:
        yield
    finally:
        with _LOCK:
            last = max(index for index, own in enumerate(_REPLACEMENTS) if own is backend)
            del _REPLACEMENTS[last]


def in_effect(own: ChatBackend) -> ChatBackend:
    """What answers now in place of a model's own backend; itself outside of all blocks."""
    last = _REPLACEMENTS[-1:]  # without the lock, which a forked child may find held
    return last[0] if last else own

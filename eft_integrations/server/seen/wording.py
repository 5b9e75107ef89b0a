"""What clients are told of an error. The log has the whole of it; a client learns nothing of the server's files, addresses or code.

What the server is at fault for is told in a sentence by its type. What the caller can mend is told as the engine says it, without
places of files and addresses, should it name any.
"""

from __future__ import annotations

import re

from eft_engine import errors

UNFORESEEN = "the server failed; its log says why"
SENTENCES: dict[type[errors.EFTError], str] = {
    errors.StepOutOfMemoryError: "memory ran out for this request; make it shorter, or try again later",
    errors.EngineStepError: "the engine failed while it ran this request; the server's log says why",
    errors.ForkedEngineError: "the engine belongs to another process; the server's log says why",
    errors.EngineClosedError: "the engine that held the model was closed: the server is shutting down, or has to be started again",
    errors.RemoteServerError: "another server, which holds the model, failed or cannot be reached; this server's log says why",
    errors.TensorParallelError: "a process that holds part of the model is lost; the server has to be started again",
    errors.ModelNotFoundError: "the model of this composition is not there; the server's log says why",
    errors.LoadError: "the model of this composition could not be loaded; the server's log says why",
    errors.VocabularyMismatchError: "the models of this composition do not fit each other; the server's log says why",
    errors.EnginesForbiddenError: "this server must not load engines; its log says why",
}
"""The nearest type decides; types that are not listed speak for themselves."""

ROOTS = (
    "applications|bin|boot|data|dev|etc|home|lib|lib64|media|mnt|models|nix|opt|private|proc|root|run|sbin|scratch|srv|sys|system|"
    "tmp|users|usr|var|volumes|work|workspace|workspaces"
)
"""Folders at the root of file systems. A pointer into JSON (/properties/home) begins otherwise."""
PLACES = re.compile(
    rf"""(?<![\w.#/\\])(?:file:/{{0,2}})?/(?:{ROOTS})(?:/[^\s'"`<>|,;:)\]}}]+)+/?  # /home/who/models
    |(?<![\w.#/\\])~[\w.-]*(?:/[^\s'"`<>|,;:)\]}}]+)+  # ~/models
    |\b[A-Za-z]:\\[^\s'"`<>|,;)\]}}]+  # C:\models
    |\\\\[\w.-]+\\[^\s'"`<>|,;)\]}}]+  # \\host\models
    |\b(?:[\w.-]+[/\\])+[\w.-]+\.(?:py|pyc|pyx|so|rs|c|cc|cpp|cu|h|hpp|gguf|safetensors)\b(?::\d+)*  # of code and weights
    |\b[\w.-]+\.(?:py|pyx|rs|c|cc|cpp|cu|h|hpp):\d+(?::\d+)*\b  # with a line
    """,
    re.IGNORECASE | re.VERBOSE,
)
ADDRESSES = re.compile(r"""\b(?:https?|grpc|unix|ws|wss)://[^\s'"`<>|,;)\]}]+""", re.IGNORECASE)


MOST_CLEANED = 3000
"""Characters of a text that are told at most: looking for places in it takes a time that grows with the square of its length."""


def told(error: Exception) -> str:
    """What a client is told."""
    if not isinstance(error, errors.EFTError):
        return UNFORESEEN
    sentence = next((SENTENCES[base] for base in type(error).__mro__ if base in SENTENCES), None)
    return clean(str(error)) if sentence is None else sentence


def clean(text: str) -> str:
    r"""A text without places of files and addresses.

    >>> clean("no config.json in /home/eft/models/base (https://10.0.0.7:8000/v1), see model.py:12")
    'no config.json in <path> (<address>), see <path>'
    >>> clean("at /properties/home/items: 1/2 of C is A/B")
    'at /properties/home/items: 1/2 of C is A/B'
    """
    return PLACES.sub("<path>", ADDRESSES.sub("<address>", text[:MOST_CLEANED]))

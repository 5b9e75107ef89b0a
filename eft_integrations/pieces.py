"""Answers in pieces that end with whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TypeVar

Piece = TypeVar("Piece")


class Pieces(Generator[Piece, None, None]):
    """The pieces of a generator, and the end of what it reads from when they are closed or dropped.

    A generator that was never started runs none of its code then, so it could not end the request behind it itself.

    Args:
        pieces: makes them.
        close: ends what they are made from; may be called more than once.
        interrupt: ends it from another thread, while a piece is waited for; None: `close` can do that.
    """

    def __init__(
        self, pieces: Generator[Piece], close: Callable[[], object], *, interrupt: Callable[[], object] | None = None
    ) -> None:
        self._pieces = pieces
        self._close = close
        self._interrupt = interrupt or close

    def send(self, value: None) -> Piece:
        """The next piece."""
        try:
            return self._pieces.send(value)
        except BaseException:
            self.close()
            raise

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | object = None,
        trace: TracebackType | None = None,
        /,
    ) -> Piece:
        """Raise at the place where the generator stands, and close it."""
        try:
            return self._pieces.throw(error if isinstance(error, BaseException) else kind)
        finally:
            self.close()

    def close(self) -> None:
        """End the request, if it is not over."""
        try:
            self._pieces.close()
        finally:
            self._close()

    def interrupt(self) -> None:
        """End the request from another thread than the one that reads, which then gets no more pieces."""
        self._interrupt()

    def __del__(self) -> None:
        self.close()

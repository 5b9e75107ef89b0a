"""What a model of a host and its copies hold together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from eft_engine import errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import backend_of_source
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.remote import RemoteBackend, remote_backend
from eft_integrations.backends.replaced import in_effect
from eft_integrations.backends.trio_source import TrioSource


@dataclass(eq=False)
class Holding:
    """A backend, and whether the model was closed. Copies of the model share it, deep ones too.

    Attributes:
        own: the model's backend, which answers unless a test has put another in its place.
        origin: what finds the same backend in another process: a trio's source, or keywords of `remote_backend`; None: it was made
            by somebody else, who closes it.
    """

    own: ChatBackend
    origin: TrioSource | dict[str, Any] | None
    is_closed: bool = False

    @classmethod
    def of(cls, origin: TrioSource | dict[str, Any]) -> Holding:
        """Of the process's backend for this origin."""
        if isinstance(origin, TrioSource):
            return cls(backend_of_source(origin), origin)
        return cls(remote_backend(**origin), origin)

    @property
    def backend(self) -> ChatBackend:
        """What answers now."""
        return in_effect(self.own)

    @property
    def model_name(self) -> str:
        """The model's own name, also while another backend answers; a server is not asked for it then."""
        known = self.own is self.backend or not isinstance(self.own, RemoteBackend)
        return self.own.model_name if known else self.backend.model_name

    @property
    def is_loaded(self) -> bool:
        """Whether nothing has to be loaded, or asked of a server, before the next answer."""
        return not isinstance(self.backend, EngineBackend | RemoteBackend) or self.backend.is_loaded

    def opened(self) -> ChatBackend:
        """The backend, to be asked.

        Raises:
            EngineClosedError: the model was closed.
        """
        if self.is_closed:
            raise errors.EngineClosedError(
                f"this model of {self.own.model_name} was closed, and its copies with it; make a new one"
            )
        return self.backend

    def load(self) -> None:
        """Load the engine, or ask the server what it holds."""
        backend = self.opened()
        if isinstance(backend, EngineBackend | RemoteBackend):
            backend.load()

    def check(self) -> None:
        """Find what is wrong with the models that were named, without loading them; ask a server whether it has them."""
        if self.origin is not None and isinstance(self.backend, EngineBackend | RemoteBackend):
            self.backend.check()

    def close(self) -> None:
        """Ask nothing more. An engine that was loaded by name goes once no request runs; others that share it load it again."""
        self.is_closed = True
        if self.origin is not None and isinstance(self.own, EngineBackend):
            self.own.let_go()

    def __deepcopy__(self, memo: dict[int, Any]) -> Holding:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is None:
            refuse_to_pickle("engine= or backend=")
        return Holding.of, (self.origin,)


def refuse_to_pickle(name: str) -> NoReturn:
    """A model that holds something of this process cannot leave it."""
    raise errors.InvalidOptionError(
        f"a model made with {name} holds networks of this process and cannot be pickled or saved; name the models instead (base=, "
        "tuned=, reference=, or preset=, base_url=), then the other process finds or loads them by itself",
        option=name,
    )

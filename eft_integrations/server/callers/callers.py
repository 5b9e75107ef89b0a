"""Who asks: keys with names, limits and policies of their own, and the ring that knows them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from eft_engine import errors
from eft_integrations.server.callers.weight_policy import NOTHING_SAID, PolicySetting, WeightPolicy, check_pairs

SENDABLE = re.compile(r"[!-~]+")
"""What a key may be: anything that a header carries as it is."""


class KeySettings(BaseModel):
    """A key and what its holder may do. `key_sha256` stands in place of `key` where a file should not hold the key itself."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[\w.@-]+$", description="what logs and metrics call the caller"
    )
    key: SecretStr | None = Field(default=None, description="what the caller sends")
    key_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="its SHA-256, in place of the key"
    )
    max_requests: int | None = Field(default=None, ge=1, description="most answers of this caller that run and wait")
    max_tokens_in_flight: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of its answers that run and wait: prompts, and what may still be written",
    )
    compositions: list[str] | None = Field(default=None, description="the compositions that it may use; None: all")
    weight_policy: PolicySetting | None = Field(
        default=None, description="free, fixed or [low, high], for all pairs or by name; in place of the composition's"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> KeySettings:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError(f"key {self.name!r} needs key or key_sha256, one of them")
        if self.key is not None and not SENDABLE.fullmatch(self.key.get_secret_value().strip()):
            raise ValueError(
                f"key {self.name!r} must be letters, digits and signs of ASCII without blanks, as headers carry them"
            )
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.key is None:
            return bytes.fromhex(str(self.key_sha256))
        return hashlib.sha256(self.key.get_secret_value().strip().encode()).digest()


def read_key_file(file: Path) -> list[KeySettings]:
    """Keys of a text file: one a line, alone or behind a name; lines that begin with # say nothing.

    Raises:
        InvalidOptionError: the file cannot be read, holds no key, or a line has more than a name and a key.
    """
    where = f"api_key_file {file}"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidOptionError(f"{where}: {error}", option="api_key_file") from None
    keys = []
    for number, line in enumerate(lines, 1):
        match line.split():
            case []:
                continue
            case [str(first), *_] if first.startswith("#"):
                continue
            case [key]:
                keys.append(plain_key(f"line-{number}", key, where=f"{where}: line {number}", option="api_key_file"))
            case [name, key]:
                keys.append(plain_key(name, key, where=f"{where}: line {number}", option="api_key_file"))
            case _:
                raise errors.InvalidOptionError(
                    f"{where}: line {number} has more than a name and a key", option="api_key_file"
                )
    if not keys:
        raise errors.InvalidOptionError(f"{where} holds no key", option="api_key_file")
    return keys


def plain_key(name: str, key: str, *, where: str, option: str) -> KeySettings:
    """A key that is not written as a table.

    Raises:
        InvalidOptionError: the name or the key cannot be one.
    """
    try:
        return KeySettings(name=name, key=SecretStr(key))
    except ValidationError as error:
        finding = error.errors(include_input=False)[0]
        subject = "name: " if finding["loc"] == ("name",) else ""
        reason = finding["msg"].removeprefix("Value error, ")
        raise errors.InvalidOptionError(f"{where}: {subject}{reason}", option=option) from None


def check_keys(keys: Sequence[KeySettings], served: Mapping[str, Collection[str] | None]) -> None:
    """Check that keys speak of compositions and pairs that are there; a misspelt one would allow or forbid nothing.

    Args:
        served: the pairs of each composition, by name; None: not known yet.

    Raises:
        InvalidOptionError: a key names another composition, or its policy another pair.
    """
    for key in keys:
        own = list(served) if key.compositions is None else key.compositions
        if unknown := sorted(set(own) - set(served)):
            raise errors.InvalidOptionError(
                f"key {key.name!r} may use {unknown[0]!r}, and this server has {', '.join(served)}",
                option="keys",
                value=unknown[0],
            )
        pairs = [served[name] for name in own]
        if None not in pairs:
            known = {pair for names in pairs for pair in names or ()}
            check_pairs(WeightPolicy.of(key.weight_policy), known, owner=f"key {key.name!r}")


@dataclass(frozen=True)
class Caller:
    """Whoever a request comes from.

    Attributes:
        max_requests: most answers that run and wait at once.
        max_tokens_in_flight: most tokens of them together.
        compositions: the names that it may use; None: all.
    """

    name: str
    max_requests: int | None = None
    max_tokens_in_flight: int | None = None
    compositions: frozenset[str] | None = None
    weight_policy: WeightPolicy = NOTHING_SAID

    @classmethod
    def of(cls, settings: KeySettings) -> Caller:
        """The holder of a key."""
        return cls(
            settings.name,
            settings.max_requests,
            settings.max_tokens_in_flight,
            None if settings.compositions is None else frozenset(settings.compositions),
            WeightPolicy.of(settings.weight_policy),
        )

    def may_use(self, composition: str) -> bool:
        """Whether a composition is there for this caller."""
        return self.compositions is None or composition in self.compositions


ANYBODY = Caller("anybody")
"""Who asks a server without keys."""


class KeyRing:
    """The keys that are known now. `replace` takes effect for the next request; requests in flight go on.

    >>> ring = KeyRing([KeySettings(name="one", key="secret")])
    >>> ring.holder("secret").name, ring.holder("other") is None, len(ring)
    ('one', True, 1)
    """

    def __init__(self, keys: Sequence[KeySettings] = ()) -> None:
        self._holders: list[tuple[bytes, Caller]] = []
        self.replace(keys)

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def callers(self) -> list[Caller]:
        """Everybody who holds a key."""
        return [caller for _, caller in self._holders]

    def replace(self, keys: Sequence[KeySettings]) -> None:
        """Know these keys and no others.

        Raises:
            InvalidOptionError: two keys have one name, or one key has two.
        """
        names, digests = Counter(key.name for key in keys), Counter(key.digest for key in keys)
        for key in keys:
            if names[key.name] > 1 or digests[key.digest] > 1:
                what = "name" if names[key.name] > 1 else "key"
                raise errors.InvalidOptionError(
                    f"two API keys have the same {what} ({key.name!r}); give each its own",
                    option="keys",
                    value=key.name,
                )
        self._holders = [(key.digest, Caller.of(key)) for key in keys]

    def holder(self, key: str) -> Caller | None:
        """Who holds a key; compared with every key, in a time that does not tell how much of one was right."""
        given = hashlib.sha256(key.strip().encode()).digest()
        found = None
        for digest, caller in self._holders:
            if hmac.compare_digest(given, digest):
                found = caller
        return found

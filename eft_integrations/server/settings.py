"""What `eft serve` can be told, by flags, by environment (`EFT_SERVE_...`), and by a file (TOML, JSON or YAML), in this order."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from eft_engine import EngineConfig, TunedPair, errors
from eft_integrations.chat.notations import notation_of
from eft_integrations.server.bounds import BoundSettings
from eft_integrations.server.callers import KeySettings, read_key_file
from eft_integrations.server.weight_policy import PolicySetting

DEFAULT_PRESET = "smollm2-json"


class CompositionSettings(BaseModel):
    """One model of the server: a base with pairs, a preset, or a trio that another server holds."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, description="what requests call it")
    base: str | None = Field(default=None, description="the large model: hub id, folder or .gguf file")
    pairs: dict[str, dict[str, Any]] = Field(default_factory=dict, description="tuned, reference, weight, by pair name")
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    url: str | None = Field(default=None, description="another eft serve, of either engine: http://host:8000/v1")
    served_name: str | None = Field(default=None, description="the trio's name on that server; None: its first")
    weights: dict[str, FiniteFloat] = Field(
        default_factory=dict, description="weights in this composition, by pair name"
    )

    weight_policy: PolicySetting | None = Field(
        default=None,
        description="what requests may ask for: free, fixed or [low, high], for all pairs or by name; None: [0, 2]",
    )
    tool_notation: str | None = Field(
        default=None, description="how the model writes tool calls (docs/families.md); None: as its chat template says"
    )
    reasoning_tags: tuple[str, str] | None = Field(
        default=None, description="the texts around a thought; None: as its chat template shows them"
    )

    @model_validator(mode="after")
    def _complete(self) -> CompositionSettings:
        if [self.base, self.preset, self.url].count(None) != 2:
            raise ValueError(f"composition {self.name!r} needs base (with pairs), preset or url, one of them")
        if self.base is None and self.pairs:
            raise ValueError(f"composition {self.name!r}: a {'preset' if self.preset else 'server'} has its own pairs")
        if self.url is None and self.served_name is not None:
            raise ValueError(f"composition {self.name!r}: served_name belongs to url")
        if "@" in self.name:
            raise ValueError(f"composition {self.name!r}: a name must not contain @, which begins weights")
        if self.base is not None and (unknown := sorted(set(self.weights) - set(self.pairs))):
            raise ValueError(f"composition {self.name!r} has a weight for {unknown[0]!r}, which is none of its pairs")
        return self

    @field_validator("tool_notation")
    @classmethod
    def _known_notation(cls, name: str | None) -> str | None:
        try:
            notation_of(None, name)
        except errors.InvalidOptionError as error:
            raise ValueError(str(error)) from None
        return name

    def tuned_pairs(self) -> dict[str, TunedPair]:
        """The pairs, checked by the engine's own rules."""
        return {name: _as_pair(name, pair) for name, pair in self.pairs.items()}


def _as_pair(name: str, pair: Mapping[str, Any]) -> TunedPair:
    missing = [side for side in ("tuned", "reference") if side not in pair]
    if missing:
        raise errors.InvalidOptionError(
            f"pair {name!r} needs {' and '.join(missing)}", option="pairs", value=dict(pair)
        )
    return TunedPair(**pair)


class ServerSettings(BaseSettings):
    """How the server behaves. Without compositions it serves the preset `smollm2-json` under that name."""

    model_config = SettingsConfigDict(
        env_prefix="EFT_SERVE_", env_nested_delimiter="__", extra="forbid", hide_input_in_errors=True
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; other than loopback needs a key")
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: SecretStr | None = Field(default=None, description="what clients must send; several, separated by commas")
    api_key_file: Path | None = Field(
        default=None, description="a file with keys, one a line, perhaps behind a name; read anew when it changes"
    )
    keys: list[KeySettings] = Field(default_factory=list, description="keys with names, limits and policies")
    upstream_api_key: SecretStr | None = Field(
        default=None, description="what servers of compositions with url are sent"
    )
    compositions: list[CompositionSettings] = Field(default_factory=list)
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig(max_queued_requests=256))
    default_max_tokens: int = Field(default=1024, ge=1, description="for chat and responses that do not say")
    request_timeout_s: float | None = Field(
        default=600.0, gt=0, description="an answer that takes longer is cancelled; None: no limit"
    )
    drain_timeout_s: int = Field(default=30, ge=0, description="on SIGTERM, answers may take so much longer")
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="larger bodies are refused")
    bounds: BoundSettings = Field(default_factory=BoundSettings, description="what one request may hold")
    force_usage: bool = Field(
        default=False, description="send the usage chunk of a stream also when it is not asked for"
    )
    cors_origins: list[str] = Field(default_factory=list, description="web pages that may call the server")
    vllm_args: list[str] = Field(default_factory=list, description="further arguments of vLLM, with --engine vllm")
    access_log: bool = Field(default=True, description="one line per request: address, path, status; never its text")

    @field_validator("engine", mode="before")
    @classmethod
    def _bounded_queue(cls, value: Any) -> Any:
        return {"max_queued_requests": 256, **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _safe(self) -> ServerSettings:
        if not self.is_loopback and not self.known_keys:
            raise ValueError(
                f"host {self.host} can be reached by others: set an API key (EFT_SERVE_API_KEY or --api-key-file), or "
                "listen on 127.0.0.1"
            )
        names = [own.name for own in self.compositions]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two compositions are called {doubled[0]!r}")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def known_keys(self) -> list[KeySettings]:
        """All keys: those with names, those of `api_key` and those of the file, which are called key-1, key-2, ...

        Raises:
            InvalidOptionError: the file cannot be read, or holds no key.
        """
        text = self.api_key.get_secret_value() if self.api_key is not None else ""
        plain = [key.strip() for key in text.split(",") if key.strip()]
        listed = [KeySettings(name=f"key-{number}", key=SecretStr(key)) for number, key in enumerate(plain, 1)]
        if self.api_key_file is not None:
            listed += read_key_file(self.api_key_file)
        return [*self.keys, *listed]

    @property
    def plain_keys(self) -> list[str]:
        """The keys themselves, for a server that knows no more of them.

        Raises:
            InvalidOptionError: a key has limits or a policy, or only its digest is known.
        """
        plain = []
        for key in self.known_keys:
            if key.key is None or key.model_fields_set - {"name", "key"}:
                raise errors.InvalidOptionError(
                    f"key {key.name!r} has a digest, limits or a policy, which only our own engine knows (--engine eft)",
                    option="keys",
                )
            plain.append(key.key.get_secret_value())
        return plain

    @property
    def served(self) -> list[CompositionSettings]:
        """The compositions, or the preset that stands in for none."""
        return self.compositions or [CompositionSettings(name=DEFAULT_PRESET, preset=DEFAULT_PRESET)]


def load_settings(file: Path | None = None, **flags: Any) -> ServerSettings:
    """Settings out of flags (those that are not None), environment and a file: TOML, JSON or YAML, as its name ends.

    Raises:
        InvalidOptionError: a name is unknown, a value out of range, or the file cannot be read.
    """
    if file is not None and not file.is_file():
        raise errors.InvalidOptionError(f"there is no configuration file {file}", option="config", value=str(file))

    class Layered(ServerSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, _file_source(settings_cls, file)

    try:
        return Layered(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        finding = error.errors(include_input=False)[0]
        option = ".".join(str(part) for part in finding["loc"])
        reason = finding["msg"].removeprefix("Value error, ")
        raise errors.InvalidOptionError(f"{option}: {reason}" if option else reason, option=option or None) from None
    except (ValueError, TypeError, YAMLError) as error:  # a file that cannot be read
        raise errors.InvalidOptionError(f"{file}: {error}", option="config", value=str(file)) from None


def _file_source(settings: type[BaseSettings], file: Path | None) -> PydanticBaseSettingsSource:
    """The source that reads a file of this kind."""
    match file.suffix if file is not None else "":
        case ".json":
            return JsonConfigSettingsSource(settings, json_file=file)
        case ".yaml" | ".yml":
            return YamlConfigSettingsSource(settings, yaml_file=file)
    return TomlConfigSettingsSource(settings, toml_file=file)

"""What `eft serve` can be told, by flags, by environment (`EFT_SERVE_...`), and by a file (TOML, JSON or YAML), in this order."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from yaml import YAMLError

from eft_engine import EngineConfig, errors
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.callers.callers import KeyRing, KeySettings, check_keys, plain_key, read_key_file
from eft_integrations.server.callers.weight_policy import WeightPolicy, check_pairs
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.entrance.connection_settings import ConnectionSettings
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.seen.logs import LogFormat, LogLevel
from eft_integrations.server.setting_sources import PREFIX, check_environment, file_source, format_of

DEFAULT_PRESET = "smollm2-json"
NAME_OF_HOST = re.compile(r"\*|(\*\.)?[^\s/:*]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/]+")
"""What browsers send as the origin of a page: no path, and no slash at the end."""


class ServerSettings(BaseSettings):
    """How the server behaves. Without compositions it serves the preset `smollm2-json` under that name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", hide_input_in_errors=True
    )

    host: str = Field(default="127.0.0.1", description="address to listen on; other than loopback needs a key")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    uds: Path | None = Field(default=None, description="unix socket to listen on, in place of host and port")
    uds_mode: str = Field(default="600", pattern="^[0-7]{3}$", description="who may open the unix socket, as for chmod")
    ssl_certfile: Path | None = Field(
        default=None, description="certificate (and its chain) in PEM; the server speaks TLS"
    )
    ssl_keyfile: Path | None = Field(default=None, description="its key; None: the certificate's file holds it")
    ssl_keyfile_password: SecretStr | None = Field(default=None, description="what the key is encrypted with")
    ssl_ca_certs: Path | None = Field(
        default=None, description="certificates of whoever signs clients' certificates; every client must show one then"
    )
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
    ping_interval_s: float | None = Field(
        default=15.0, gt=0, description="a stream that has had nothing to send for so long sends a ping; None: never"
    )
    max_stored_responses: int = Field(
        default=0, ge=0, description="answers of /v1/responses that are kept to be continued; 0: none"
    )
    max_stored_bytes: int = Field(
        default=64 * 2**20, ge=1024, description="most bytes of them together; the least recently used leave"
    )
    drain_timeout_s: int = Field(default=30, ge=0, description="on SIGTERM, answers may take so much longer")
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024, description="larger bodies are refused")
    connections: ConnectionSettings = Field(
        default_factory=ConnectionSettings, description="how many connections, and how long clients may take"
    )
    bounds: BoundSettings = Field(default_factory=BoundSettings, description="what one request may hold")
    force_usage: bool = Field(
        default=False, description="send the usage chunk of a stream also when it is not asked for"
    )
    cors_origins: list[str] = Field(default_factory=list, description="web pages that may call the server")
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="names that the server answers to besides those of this machine; none, and with keys: to all names",
    )
    vllm_args: list[str] = Field(default_factory=list, description="further arguments of vLLM, with --engine vllm")
    batches: BatchSettings = Field(default_factory=BatchSettings, description="files and batches; off without a folder")
    page: bool = Field(default=True, description="a page at / to try the server with a browser")
    access_log: bool = Field(default=True, description="one line per request when it has ended; never its text")
    log_format: LogFormat = Field(default="text", description="lines of text, or one JSON object a line")
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")
    metrics_without_key: bool = Field(default=False, description="/metrics answers also who sends no key")
    stall_timeout_s: float | None = Field(
        default=300.0,
        gt=0,
        description="an engine that has work and ends no pass of a network for longer is not ready; None: that is never said",
    )
    otel: bool | None = Field(
        default=None,
        description="OpenTelemetry's traces and metrics (OTEL_... says where to); None: if OTEL_EXPORTER_OTLP_ENDPOINT is set",
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _bounded_queue(cls, value: Any) -> Any:
        return {"max_queued_requests": 256, **value} if isinstance(value, Mapping) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not NAME_OF_HOST.fullmatch(name):
                raise ValueError(f"a name or an address without scheme and port, *.example.org or *; got {name[:80]!r}")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"an origin is written https://example.org, without a path, or *; got {origin[:80]!r}")
        return origins

    @model_validator(mode="after")
    def _safe(self) -> ServerSettings:
        if self.uds is None and "uds_mode" in self.model_fields_set:
            raise ValueError("uds_mode belongs to uds, which is not given")
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_keyfile_password or self.ssl_ca_certs):
            raise ValueError(
                "ssl_keyfile, ssl_keyfile_password and ssl_ca_certs belong to an ssl_certfile, which is not given"
            )
        if self.uds is None and not self.is_loopback and not self.known_keys:
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
            InvalidOptionError: the file cannot be read or holds no key, or a key cannot be one.
        """
        text = self.api_key.get_secret_value() if self.api_key is not None else ""
        plain = [key.strip() for key in text.split(",") if key.strip()]
        listed = [
            plain_key(f"key-{number}", key, where="api_key", option="api_key") for number, key in enumerate(plain, 1)
        ]
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

    def check_names(self) -> None:
        """Check keys and policies as far as that is possible before anything is loaded.

        Raises:
            InvalidOptionError: two keys have one name, a key, a policy or a weight speaks of a composition or pair that is not
                there, or as for `CompositionSettings.known_pairs`.
        """
        keys = self.known_keys
        KeyRing(keys)
        served = {own.name: own.known_pairs() for own in self.served}
        for own in self.served:
            if (pairs := served[own.name]) is not None:
                check_pairs(WeightPolicy.of(own.weight_policy), pairs, owner=f"composition {own.name!r}")
        check_keys(keys, served)

    @property
    def served(self) -> list[CompositionSettings]:
        """The compositions, or the preset that stands in for none."""
        return self.compositions or [CompositionSettings(name=DEFAULT_PRESET, preset=DEFAULT_PRESET)]


def load_settings(file: Path | None = None, **flags: Any) -> ServerSettings:
    """Settings out of flags (those that are not None), environment and a file: TOML, JSON or YAML, as its name ends.

    Raises:
        InvalidOptionError: a name is unknown, a value out of range, the file cannot be read, or `ServerSettings.check_names`.
    """
    if file is not None and not file.is_file():
        raise errors.InvalidOptionError(f"there is no configuration file {file}", option="config", value=str(file))
    check_environment(ServerSettings)

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
            return init_settings, env_settings, file_source(settings_cls, file)

    try:
        settings = Layered(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        finding = error.errors(include_input=False)[0]
        option = ".".join(str(part) for part in finding["loc"])
        reason = finding["msg"].removeprefix("Value error, ")
        raise errors.InvalidOptionError(f"{option}: {reason}" if option else reason, option=option or None) from None
    except SettingsError as error:  # a variable that is no JSON
        field = next(iter(re.findall(r'field "(\w+)"', str(error))), "")
        raise errors.InvalidOptionError(
            f'{PREFIX}{field.upper()} must be JSON: a list as ["a", "b"], a table as {{"name": 1}}',
            option=field or None,
        ) from None
    except (ValueError, TypeError, YAMLError, OSError) as error:  # a file that cannot be read
        raise errors.InvalidOptionError(
            f"{file} cannot be read as {format_of(file)}: {error}", option="config", value=str(file)
        ) from None
    settings.check_names()
    return settings

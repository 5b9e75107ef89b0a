"""Where settings come from besides flags: variables of the environment, and a file in TOML, JSON or YAML."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pydantic import BaseModel
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from eft_engine import errors

PREFIX = "EFT_SERVE_"
"""What variables that are settings begin with."""
OF_FILE = f"{PREFIX}CONFIG"
"""The variable that names the file."""
CLOSE = 0.7
"""From this likeness on (difflib's ratio) a variable is taken for a setting that is misspelt."""


def check_environment(settings: type[BaseSettings]) -> None:
    """Check that variables which look like settings are some: a misspelt one would do nothing, and nobody would say so.

    Raises:
        InvalidOptionError: one is none.
    """
    tables = _tables(settings)
    for given in sorted(os.environ):
        name = given.upper()
        if not name.startswith(PREFIX) or name == OF_FILE:
            continue
        field, *below = name.removeprefix(PREFIX).lower().split("__")
        if field not in settings.model_fields or (below and field not in tables):
            close = difflib.get_close_matches(name, _variables(settings, tables), n=1, cutoff=CLOSE)
            hint = f"did you mean {close[0]}?" if close else "docs/server.md has them all"
            raise errors.InvalidOptionError(
                f"the environment has {given[:80]}, which is no setting; {hint}", option=field
            )


def _tables(settings: type[BaseSettings]) -> dict[str, type[BaseModel]]:
    """Settings that have settings below them."""
    kinds = {name: field.annotation for name, field in settings.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def _variables(settings: type[BaseSettings], tables: dict[str, type[BaseModel]]) -> list[str]:
    """Names of all variables."""
    below = [f"{table}__{name}" for table, kind in tables.items() for name in kind.model_fields]
    return [OF_FILE, *(f"{PREFIX}{name}".upper() for name in [*settings.model_fields, *below])]


def format_of(file: Path | None) -> str:
    """How a file is read, as its name ends.

    >>> format_of(Path("eft.yml")), format_of(Path("EFT.JSON")), format_of(Path("eft.conf"))
    ('YAML', 'JSON', 'TOML')
    """
    match file.suffix.lower() if file is not None else "":
        case ".json":
            return "JSON"
        case ".yaml" | ".yml":
            return "YAML"
    return "TOML"


def file_source(settings: type[BaseSettings], file: Path | None) -> PydanticBaseSettingsSource:
    """The source that reads a file."""
    match format_of(file):
        case "JSON":
            return JsonConfigSettingsSource(settings, json_file=file)
        case "YAML":
            return YamlConfigSettingsSource(settings, yaml_file=file)
    return TomlConfigSettingsSource(settings, toml_file=file)

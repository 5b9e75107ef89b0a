"""For pytest: `pytest -p eft_integrations.testing.plugin`, or `pytest_plugins` with this module's name in a conftest.py.

`--forbid-engines` (or `forbid_engines = true` in pytest's configuration): nothing is loaded by name in any test, but for those that
are marked `real_engine`. The fixture `scripted_models` puts a script in place of every model of the application.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.testing.engines import allow_engines, forbid_engines
from eft_integrations.testing.scripting import scripted

OPTION = "forbid_engines"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch, on the command line and in the configuration."""
    said = "load no engine by name in any test that is not marked real_engine"
    parser.addoption("--forbid-engines", action="store_true", default=False, dest=OPTION, help=said)
    parser.addini(OPTION, help=said, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """The marker that lifts it."""
    config.addinivalue_line("markers", "real_engine: may load an engine by name in spite of --forbid-engines")


@pytest.fixture(autouse=True)
def _engines(request: pytest.FixtureRequest) -> Iterator[None]:
    is_forbidden = request.config.getoption(OPTION) or request.config.getini(OPTION)
    if not is_forbidden:
        yield
        return
    is_real = request.node.get_closest_marker("real_engine") is not None
    with allow_engines() if is_real else forbid_engines():
        yield


@pytest.fixture
def scripted_models() -> Iterator[ScriptedBackend]:
    """Every model of the application answers what fits, and what was asked is in the backend's `records`."""
    with scripted() as backend:
        yield backend

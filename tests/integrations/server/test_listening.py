"""Addresses, unix sockets and certificates: what is wrong with them is told before any model is loaded."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
import typer.main
import typer.testing

from eft_engine.errors import InvalidOptionError
from eft_integrations.server.command import serve
from eft_integrations.server.entrance.connection_settings import ConnectionSettings
from eft_integrations.server.entrance.listening import listening, tls_context
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.logged import logging_as_before


def certificate(folder: Path, name: str = "server", *, password: str | None = None) -> tuple[Path, Path]:
    """A certificate of its own for localhost, and its key."""
    files = folder / f"{name}.crt", folder / f"{name}.key"
    secret = ["-noenc"] if password is None else ["-passout", f"pass:{password}"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost", *secret,
               "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return files


def free() -> ServerSettings:
    """Settings that take a free port."""
    return ServerSettings(port=0)


def test_port_is_held_by_one_and_refuses_clients_until_it_is_listened_on() -> None:
    with listening(free()) as held:
        port = held.sockets[0].getsockname()[1]
        assert held.address == f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with (
            pytest.raises(InvalidOptionError, match="is in use by another program"),
            listening(ServerSettings(port=port)),
        ):
            pass
        held.sockets[0].listen()
        with (
            pytest.raises(InvalidOptionError, match="is in use by another program"),
            listening(ServerSettings(port=port)),
        ):
            pass


def test_port_of_a_process_that_just_ended_can_be_taken_by_one() -> None:
    with listening(free()) as held:
        first = held.sockets[0]
        port = first.getsockname()[1]
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.listen()
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        first.accept()[0].close()  # who closes first keeps the remains
        client.close()
    settings = ServerSettings(port=port)
    with listening(settings), pytest.raises(InvalidOptionError, match="is in use"), listening(settings):
        pass


def test_localhost_is_both_addresses_with_one_port() -> None:
    with listening(ServerSettings(host="localhost", port=0)) as held:
        assert len({one.getsockname()[1] for one in held.sockets}) == 1


@pytest.mark.parametrize(
    ("host", "message"),
    [("203.0.113.1", "has no such address"), ("no-such-name.invalid", "is no address of this machine")],
)
def test_address_of_another_machine_is_refused(host: str, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message), listening(ServerSettings(host=host, api_key="k", port=0)):
        pass


def test_unix_socket_is_ours_alone_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "eft.sock"
    with listening(ServerSettings(uds=path)) as held:
        assert held.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with (
            pytest.raises(InvalidOptionError, match="another program listens on it"),
            listening(ServerSettings(uds=path)),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    with listening(ServerSettings(uds=path, uds_mode="660")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_stale_unix_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "eft.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(ServerSettings(uds=path)):
        pass
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="no socket"), listening(ServerSettings(uds=path)):
        pass
    assert path.read_text(encoding="utf-8") == "precious"
    for wrong in (tmp_path / "no" / "folder", tmp_path / ("a" * 200)):
        with pytest.raises(InvalidOptionError, match="unix socket"), listening(ServerSettings(uds=wrong)):
            pass


def test_certificate_and_key_are_read(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    assert tls_context(free()) is None
    assert isinstance(tls_context(ServerSettings(ssl_certfile=cert, ssl_keyfile=key)), ssl.SSLContext)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    assert tls_context(ServerSettings(ssl_certfile=both)) is not None
    asking = tls_context(ServerSettings(ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=cert))
    assert asking is not None
    assert asking.verify_mode is ssl.CERT_REQUIRED


def test_what_is_wrong_with_a_certificate_is_told(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    _, other = certificate(tmp_path, "other")
    locked = certificate(tmp_path, "locked", password="secret")
    noise = tmp_path / "noise.pem"
    noise.write_text("nothing", encoding="utf-8")

    def told(**files: object) -> str:
        with pytest.raises(InvalidOptionError) as refused:
            tls_context(ServerSettings(**files))  # type: ignore[arg-type]
        return str(refused.value)

    assert "No such file" in told(ssl_certfile=tmp_path / "none.crt")
    assert "No such file" in told(ssl_certfile=cert, ssl_keyfile=tmp_path / "none.key")
    assert "does not belong" in told(ssl_certfile=cert, ssl_keyfile=other)
    assert "cannot be read" in told(ssl_certfile=noise, ssl_keyfile=key)
    assert "cannot be read" in told(ssl_certfile=cert)  # it holds no key
    assert "no certificate in PEM" in told(ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=noise)
    assert "password is missing or wrong" in told(ssl_certfile=locked[0], ssl_keyfile=locked[1])
    assert "password is missing or wrong" in told(
        ssl_certfile=locked[0], ssl_keyfile=locked[1], ssl_keyfile_password="wrong"
    )
    right = ServerSettings(ssl_certfile=locked[0], ssl_keyfile=locked[1], ssl_keyfile_password="secret")
    assert tls_context(right) is not None
    with pytest.raises(ValueError, match="belong to an ssl_certfile"):
        ServerSettings(ssl_keyfile=key)


def test_port_in_use_is_told_before_models_are_looked_for(tmp_path: Path) -> None:
    with listening(free()) as held, logging_as_before():
        port = str(held.sockets[0].getsockname()[1])
        app = typer.Typer()
        app.command()(serve)
        ran = typer.testing.CliRunner().invoke(
            app, ["--port", port, "--base", str(tmp_path / "no-model"), "--tuned", "t", "--reference", "r"]
        )
    assert isinstance(ran.exception, InvalidOptionError)
    assert "is in use by another program" in str(ran.exception)


# ---- the help text ---------------------------------------------------------------------------------------------------------


def told_defaults() -> dict[str, str]:
    """What `--help` calls the default of each flag, by its name in the settings."""
    app = typer.Typer()
    app.command()(serve)
    names = {"allowed_host": "allowed_hosts"}
    told = {}
    for option in typer.main.get_command(app).params:
        if option.name in ("install_completion", "show_completion", "help"):
            continue
        shown = getattr(option, "show_default", None)
        text = shown if isinstance(shown, str) else str(getattr(option.default, "value", option.default))
        assert getattr(option, "help", None), f"--{option.name} has no help"
        told[names.get(str(option.name), str(option.name))] = text
    return told


def written(default: object) -> set[str]:
    """How a default may be written."""
    match default:
        case None | []:
            return {"none"}
        case bool():
            return {"yes", "on"} if default else {"no", "off"}
        case float():
            return {f"{default:g}"}
    return {str(default)}


def test_every_flag_tells_its_default() -> None:
    settings = ServerSettings()
    groups = (settings.engine, settings.connections, settings)
    defaults = {name: getattr(group, name) for group in groups for name in type(group).model_fields}
    told = told_defaults()
    assert "None" not in told.values(), [name for name, text in told.items() if text == "None"]
    known = set(told) & set(defaults)
    assert {"host", "port", "uds", "max_num_seqs", "max_queued_requests", *ConnectionSettings.model_fields} - {
        "max_held_body_bytes"
    } <= known
    own = {"ssl_keyfile", "preset", "access_log", "page", "otel"}  # told in words
    wrong = {name: text for name, text in told.items() if name in known - own and text not in written(defaults[name])}
    assert not wrong, wrong


def test_help_shows_them() -> None:
    ran = typer.testing.CliRunner().invoke(_app(), ["--help"], env={**os.environ, "COLUMNS": "200", "TERM": "dumb"})
    assert ran.exit_code == 0
    for text in ("--ssl-certfile", "--uds", "127.0.0.1", "[default: (8000)]", "[default: (1024)]"):
        assert text in ran.output, text


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(serve)
    return app

"""Where the server listens, taken before models are loaded: what is wrong with an address or a certificate is told at once.

An address is held without being listened on, so that others cannot take it and clients are refused until the server is ready. A
unix socket is listened on at once (a file that nobody listens on would be taken for a stale one); its clients wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from eft_engine import errors
from eft_integrations.server.settings import ServerSettings

BACKLOG, TAKEN_AT_ONCE = 1024, 100
"""Connections that wait to be taken, and most of them that are taken in one turn of the event loop: so few that one that was taken
says what it wants before hundreds of others could take its place.
"""


class Listening:
    """Sockets that are held, and how the server is reached over them."""

    def __init__(self, sockets: Sequence[socket.socket], *, address: str, path: Path | None = None) -> None:
        self.sockets = list(sockets)
        self.address = address
        self._path = path
        self._inode = None if path is None else path.stat().st_ino

    def close(self) -> None:
        """Let go of them; the file of a unix socket is removed, unless it has become another's."""
        for held in self.sockets:
            held.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()


@contextlib.contextmanager
def listening(settings: ServerSettings) -> Generator[Listening]:
    """Hold what the settings name, until the block ends.

    Raises:
        InvalidOptionError: it is in use, not allowed, or there is no such address.
    """
    held = _held_file(settings.uds, int(settings.uds_mode, 8)) if settings.uds is not None else _held_port(settings)
    try:
        yield held
    finally:
        held.close()


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """How TLS is spoken; None: it is not.

    Raises:
        InvalidOptionError: a file is missing or unreadable, the key does not fit, or its password is wrong.
    """
    if settings.ssl_certfile is None:
        return None
    for option in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        if (file := getattr(settings, option)) is not None:
            _check_readable(option, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    secret = settings.ssl_keyfile_password
    password = "" if secret is None else secret.get_secret_value()  # never asked for on the terminal
    key = settings.ssl_keyfile or settings.ssl_certfile
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, lambda: password)
    except ssl.SSLError as error:
        raise errors.InvalidOptionError(
            f"certificate {settings.ssl_certfile} and key {key}: {_reason(error, key)}", option="ssl_certfile"
        ) from None
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except ssl.SSLError as error:
            raise errors.InvalidOptionError(
                f"ssl_ca_certs {settings.ssl_ca_certs} holds no certificate in PEM: {error.reason or error}",
                option="ssl_ca_certs",
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(option: str, file: Path) -> None:
    try:
        with file.open("rb"):
            return
    except OSError as error:
        raise errors.InvalidOptionError(f"{option} {file}: {error.strerror}", option=option, value=str(file)) from None


def _reason(error: ssl.SSLError, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if b"ENCRYPTED" in key.read_bytes():
        return "the key is encrypted, and ssl_keyfile_password is missing or wrong"
    return "they cannot be read; both must be PEM, the certificate in the first and its key in the second"


def _held_port(settings: ServerSettings) -> Listening:
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise errors.InvalidOptionError(
            f"host {settings.host!r} is no address of this machine: {error.strerror}",
            option="host",
            value=settings.host,
        ) from None
    sockets: list[socket.socket] = []
    refused: OSError | None = None
    port = settings.port
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bound(family, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or len(found) == 1:
                for held in sockets:
                    held.close()
                raise _refusal(error, where) from None
            refused = error  # a name that stands for an address which this machine has not, such as ::1
            continue
        port = sockets[0].getsockname()[1]
    if not sockets:
        assert refused is not None, "a name stands for an address at least"
        raise _refusal(refused, where)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "http" if settings.ssl_certfile is None else "https"
    return Listening(sockets, address=f"{scheme}://{name}:{port}")


def _refusal(error: OSError, where: str) -> errors.InvalidOptionError:
    match error.errno:
        case errno.EADDRINUSE:
            return errors.InvalidOptionError(
                f"{where} is in use by another program; stop that, or choose another port (--port 0 takes a free one)",
                option="port",
            )
        case errno.EACCES | errno.EPERM:
            return errors.InvalidOptionError(
                f"{where} may not be listened on: ports below 1024 need a privilege; choose another", option="port"
            )
        case errno.EADDRNOTAVAIL:
            return errors.InvalidOptionError(f"{where}: this machine has no such address", option="host")
    return errors.InvalidOptionError(f"{where}: {error.strerror}", option="host")


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    """A socket that alone has an address, and does not listen yet.

    Two sockets that both allow to be beside others (SO_REUSEADDR) could both be bound while neither listens. So it is not allowed
    at first, and only where remains of connections of an earlier process are in the way.
    """
    held = _socket(family)
    try:
        if os.name == "posix" and _is_in_use(lambda: held.bind(address)):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        elif os.name != "posix":
            held.bind(address)
    except OSError:
        held.close()
        raise
    return held


def _socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _is_in_use(bind: Callable[[], None]) -> bool:
    try:
        bind()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False


def _held_file(path: Path, mode: int) -> Listening:
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        is_socket = False
    except OSError as error:
        raise _file_refusal(path, str(error.strerror)) from None
    else:
        if not is_socket:
            raise _file_refusal(path, "there is a file of that name which is no socket")
    if is_socket:
        _remove_stale(path)
    held = _socket(socket.AF_UNIX)
    umask = os.umask(0o777 & ~mode)  # nobody else may open it, not even before its mode is set
    try:
        held.bind(str(path))
        path.chmod(mode)
        held.listen(BACKLOG)
    except OSError as error:
        held.close()
        raise _file_refusal(path, error.strerror or str(error)) from None
    finally:
        os.umask(umask)
    return Listening([held], address=f"unix:{path}", path=path)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise _file_refusal(path, error.strerror or str(error)) from None
    raise _file_refusal(path, "another program listens on it")


def _file_refusal(path: Path, reason: str) -> errors.InvalidOptionError:
    return errors.InvalidOptionError(f"unix socket {path}: {reason}", option="uds", value=str(path))

"""The listening socket: from systemd where it hands one over, so that a restart refuses no callback; else bound here."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from receiver.errors import ConfigError, Mistake

FIRST_FD = 3  # https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
BACKLOG = 2048  # callbacks that wait while we start


def open_sockets(host: str, port: int, environ: MutableMapping[str, str], file: str) -> list[socket.socket]:
    """Listening sockets. ConfigError where the address cannot be had."""
    return inherited_sockets(environ) or [bind(host, port, file)]


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """What systemd opened for this very process; the variables are taken, so that no child believes them."""
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]
    for found in sockets:
        os.set_inheritable(found.fileno(), False)
    return sockets


def bind(host: str, port: int, file: str) -> socket.socket:
    try:
        [*_, (family, _, _, _, address)] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[:1]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        detail = f"cannot listen on {show_address(host, port)}: {error.strerror or error}"
        raise ConfigError([Mistake(file, "server.port", detail)]) from None
    # asyncio turns Nagle's delay off only where the protocol is named: without it an answer may take 40 ms
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())


def address_of(listener: socket.socket) -> str:
    """Where the socket is reached, as a URL."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://{show_address(host, port)}"


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def notify_systemd(state: str, environ: MutableMapping[str, str]) -> None:
    """`READY=1` or `STOPPING=1`, for units of Type=notify."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:
            return  # who does not listen does not want to know

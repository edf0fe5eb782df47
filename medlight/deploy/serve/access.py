"""Who may ask: a bearer token, and names that this machine goes by.

A page of another site that runs in the user's browser reaches servers on this machine. By a name that is pointed at
127.0.0.1 (DNS rebinding) it could even read their answers: so requests for a host that nobody calls this one, or sent
by a page of another origin, are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medlight.errors import UsageError

TOKEN = "MEDLIGHT_TOKEN"
_SHORTEST = 16
_MAKE = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
_OPEN = ("/health",)  # load balancers ask it, and have no token

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None) -> str | None:
    """Return the token: of a file's first line, else of the environment; None where there is none.

    Raises UsageError for a file that can't be read and for a token that can be guessed.
    """
    if file is None:
        given, where = os.environ.get(TOKEN, ""), TOKEN
        if not given:
            return None
    else:
        where = f"--token-file {file}"
        try:
            given = file.read_text(encoding="ascii").partition("\n")[0]
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else "not ASCII text"
            raise UsageError(f"{where}: can't be read ({said}); write a token to it: {_MAKE} > {file}") from None
    token = given.strip()
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"{where}: a token has at least {_SHORTEST} characters of ASCII and no spaces; make one: {_MAKE}"
        )
    return token


def check_open(host: str, token: str | None) -> None:
    """Raise UsageError where other machines would reach the server and no token keeps them out."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"--host {host}: others would reach it, and there is no token; mend: give --token-file or {TOKEN}, "
            "or leave --host out"
        )


def own_names(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """What this machine may be called in a Host header, without ports and in small letters."""
    names = {"localhost", "127.0.0.1", "::1", host, *more}
    if not is_loopback(host):
        import psutil

        names |= {socket.gethostname(), socket.getfqdn()}
        names |= {entry.address.split("%")[0] for card in psutil.net_if_addrs().values() for entry in card}
    return frozenset(name.strip("[]").lower().rstrip(".") for name in names) - {"0.0.0.0", "::", ""}


class Guard:
    """Stands before an application: refuses what may not ask, before any of the body is read."""

    def __init__(self, application: Application, *, names: frozenset[str], token: str | None) -> None:
        """names: `own_names`. token: what ``Authorization: Bearer`` must give; None where none is asked for."""
        self._application = application
        self._names = names
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._application(scope, receive, send)
            return
        status, reason = refusal
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": reason}).encode() + b"\n"})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(hosts) != 1 or _name(b"//" + hosts[0]) not in self._names:
            return 403, "this server does not go by that name; call it by its address, or start it with --allow-host"
        if origins and [_origin(origin) for origin in origins] != [hosts[0].lower()]:
            return 403, "requests of other sites' pages are refused"
        if self._token is None or scope["path"] in _OPEN:
            return None
        given = headers.get(b"authorization", [])
        kind, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        right = hmac.compare_digest(token.strip(), self._token)
        return None if right and kind.lower() == b"bearer" else (401, "a token is needed: Authorization: Bearer TOKEN")


def _name(url: bytes) -> str:
    try:
        return (urlsplit(url.decode("ascii")).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _origin(origin: bytes) -> bytes:
    scheme, _, place = origin.lower().partition(b"://")
    return place if scheme in (b"http", b"https") else b"?"

"""Under which names a service answers: a defence against DNS rebinding.

A page of another site can have its own name resolve to this machine, and then reads what the service answers as its
own. It cannot choose what the browser sends as `Host`: that name. An address has no resolver that could be turned, so
addresses and `localhost` are answered, and other names where they are listed.

Starlette's TrustedHostMiddleware is not used: it takes no IPv6 address and answers without a cure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.common.serving.refusal import RefusalError

ANY = "*"


class KnownHosts:
    """ASGI middleware: 421 where `Host` is a name that is neither `localhost` nor one of `names`; `*` knows all.

    A request without `Host`, which no browser sends, is let through.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or ANY in self.names:
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).getlist("host")
        if all(self._known(one) for one in given):
            return await self.app(scope, receive, send)
        sentence = "The service is not known by this name. Use its address, or list the name in SERVICE_HOSTS."
        await RefusalError(421, "host", sentence, {"connection": "close"}).response()(scope, receive, send)

    def _known(self, given: str) -> bool:
        try:
            name = (urlsplit(f"//{given}").hostname or "").rstrip(".")
        except ValueError:  # brackets that hold no address
            return False
        return name in self.names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

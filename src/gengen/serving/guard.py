"""Who may come in: the outermost layer, which every request passes before anything of it is believed.

By default all is refused: an unknown Host, a foreign Origin, a missing key, a body that is too large, too slow or no
JSON. Every error of every layer below becomes an answer here, and nowhere else.
"""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gengen.serving.answers import encoded
from gengen.serving.protocol import ApiError

log = logging.getLogger("gengen.serving")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 2**20  # bytes
MAX_PICTURES = 2**23  # bytes of a body that brings pictures
PICTURES = {"/gengen/v1/images/edits", "/gengen/v1/reconstruct"}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}


class ClientGone(Exception):
    """The client left before it was answered: nothing is sent, and 499 is logged."""


@dataclass(frozen=True)
class Rules:
    """hosts: names in a Host header that are ours; origins: of pages that may use the server; keys: one of which each
    request must carry, none = no key is asked for."""

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    body_s: float = 30.0
    max_requests: int = 256


class Guard:
    """Wraps the routes of the server."""

    def __init__(self, app: App, rules: Rules):
        self.app, self.rules, self.in_progress = app, rules, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = Exchange(scope, receive, send, self.rules)
        self.in_progress += 1
        try:
            await self._answer(exchange)
        finally:
            self.in_progress -= 1
            exchange.log()

    async def _answer(self, exchange: "Exchange") -> None:
        try:
            if preflight := self._checked(exchange):
                return await preflight(exchange.scope, exchange.receive, exchange.send)
            await self.app(exchange.scope, exchange.receive, exchange.send)
        except ClientGone:
            exchange.status = 499
        except ApiError as error:
            await exchange.refuse(error)
        except HTTPException as error:  # of the router
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
            message = f"{exchange.scope['method']} {exchange.scope['path'][:200]}: {error.detail}"
            await exchange.refuse(ApiError(error.status_code, message, code))
        except Exception:
            log.exception("request %s failed", exchange.id)
            message = f"something failed here, which request {exchange.id} shows in the server's log"
            await exchange.refuse(ApiError(500, message, "internal_error"))

    def _checked(self, exchange: "Exchange") -> Response | None:
        """Check all that can be checked before the body is read. Returns the answer to a preflight."""
        headers, scope = exchange.headers, exchange.scope
        check_host(headers, self.rules.hosts)
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers={"allow": "GET, POST"})
        if scope["method"] not in SAFE_METHODS:
            check_origin(headers, self.rules.origins)
        scope["state"]["client"] = check_key(headers, self.rules.keys) or f"{scope.get('client')}"
        if self.in_progress > self.rules.max_requests:
            raise ApiError(
                429, f"{self.rules.max_requests} requests are in progress", "rate_limit_exceeded", retry_after=1
            )
        if scope["method"] not in SAFE_METHODS:
            check_body(headers, scope["path"])
        return None


class Exchange:
    """A request and its answer, watched."""

    def __init__(self, scope: Message, receive: Receive, send: Send, rules: Rules):
        self.scope, self.headers, self.rules = scope, Headers(scope=scope), rules
        self._receive, self._send = receive, send
        given = self.headers.get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self.began, self.status, self.received = time.monotonic(), 0, 0
        self.body_left = scope["method"] not in SAFE_METHODS
        scope.setdefault("state", {})["request_id"] = self.id
        scope["app"] = self  # so that the router raises what it would else answer itself

    async def receive(self) -> Message:
        """Take the next part of the body. Raises ApiError where it grows too large or comes too slowly."""
        if not self.body_left:
            return await self._receive()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._body_time()):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body took over {self.rules.body_s:g} s to arrive", "request_timeout") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        self.received += len(message.get("body", b""))
        self.body_left = message.get("more_body", False)
        if self.received > most_of(self.scope["path"]):
            raise too_large(self.scope["path"])
        return message

    def _body_time(self) -> float:
        return max(0.0, self.began + self.rules.body_s - time.monotonic())

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "no-referrer"
            if self.body_left:  # what else the client sends is not read
                headers["connection"] = "close"
            self._allow_origin(headers)
        await self._send(message)

    def _allow_origin(self, headers: MutableHeaders) -> None:
        """Let a page of an allowed origin read the answer."""
        if not self.rules.origins:
            return
        headers.add_vary_header("origin")
        if (origin := self.headers.get("origin")) in self.rules.origins and origin:
            headers["access-control-allow-origin"] = origin
            if self.scope["method"] == "OPTIONS":
                headers["access-control-allow-methods"] = "GET, POST"
                headers["access-control-allow-headers"] = self.headers.get("access-control-request-headers", "")
                headers["access-control-max-age"] = "600"

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; where an answer has begun already, cut the connection."""
        if self.status:
            self.scope["state"].get("abort", lambda: None)()
            return
        headers = {"content-type": "application/json"}
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        answer = Response(encoded(error.body()), error.status, headers)
        await answer(self.scope, self._receive, self.send)

    def log(self) -> None:
        """Log a line; what the client chose of it is escaped."""
        path = ascii(self.scope["path"][:200])[1:-1]
        took = (time.monotonic() - self.began) * 1000
        log.info("%s %s %d %.0f ms %s", self.scope["method"], path, self.status, took, self.id)


# --- the checks: each raises ApiError


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """A page whose name was made to resolve to this machine calls us by that name: it is not ours."""
    given = headers.getlist("host")
    match = HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
    if match is None or match[1] not in allowed:
        shown = given[0][:60] if given else ""
        raise ApiError(403, f"Host {shown!a} is no name of this server; allowed_hosts= adds one", "host_not_allowed")


def check_origin(headers: Headers, allowed: frozenset[str]) -> None:
    """A browser says which page sends a request: ours, or one that was allowed by name."""
    origin = headers.get("origin")
    if origin in allowed and origin:
        return
    if origin is not None and not same_place(origin, headers["host"]):
        message = f"Origin {origin[:60]!a} may not use this server; allow_origins= adds one"
        raise ApiError(403, message, "origin_not_allowed")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "a page of another site may not use this server", "origin_not_allowed")


def same_place(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def check_key(headers: Headers, keys: tuple[str, ...]) -> str:
    """Return which key was sent, "" where none is asked for."""
    if not keys:
        return ""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]  # all, whichever fits
    if scheme.lower() != "bearer" or not any(matches):
        what = "is not the right one" if given else "is missing: send Authorization: Bearer KEY"
        raise ApiError(401, f"the API key {what}", "invalid_api_key")
    return f"key {matches.index(True)}"


def check_body(headers: Headers, path: str) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"Content-Type {kind[:60]!a}: a body is application/json", "unsupported_media_type")
    if headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Content-Encoding: a body is sent as it is", "unsupported_media_type")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 12:
        raise ApiError(400, "Content-Length is no number", "invalid_content_length")
    if int(length) > most_of(path):
        raise too_large(path)


def most_of(path: str) -> int:
    """Return how many bytes the body of a request may have."""
    return MAX_PICTURES if path in PICTURES else MAX_BODY


def too_large(path: str) -> ApiError:
    return ApiError(413, f"the body is larger than {most_of(path):,} bytes", "body_too_large")

"""The process: uvicorn with patience that has an end, and a stop that lets requests finish."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gengen.config.serve import ServeConfig
from gengen.errors import UserError
from gengen.io import Say
from gengen.serving.app import Application

log = logging.getLogger("gengen.serving")
MAX_HEADERS = 16 * 1024  # bytes
SEND_BUFFER = 64 * 1024  # bytes that the kernel holds for a client; more would hide for minutes that it does not read
HEADERS_S = 10.0  # in which the head of a request must be there, once a connection is open or has sent some of it
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class PatientProtocol(H11Protocol):
    """uvicorn waits for the head of a request for ever; here it waits `HEADERS_S`. And a connection whose client does
    not read can be cut: `close` would wait until all is sent."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_head()
        else:
            self._head_is_there()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEADERS_S, self._read_once_more)

    def _read_once_more(self) -> None:
        """A loop that is late itself has not yet read what came in time: it does before this second timer."""
        self.head_timer = self.loop.call_later(0.2, self.transport.abort)

    def _head_is_there(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


class Server(uvicorn.Server):
    """Stops in steps. A first signal: new requests are refused, those in progress go on for `drain_s` and are then
    ended where they are. A second one: they are ended now.

    listening: called once the port answers.
    """

    def __init__(
        self, config: uvicorn.Config, application: Application, drain_s: float, say: Say, listening: Callable[[], None]
    ):
        super().__init__(config)
        self.application, self.drain_s, self.say, self.listening = application, drain_s, say, listening
        self.signals: list[int] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.application.start()
        await super().startup(sockets)
        self.listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals ourselves: uvicorn would close the port at once, and end by the signal and not by a code."""
        loop = asyncio.get_running_loop()
        for number in EXIT_CODES:
            loop.add_signal_handler(number, self.on_signal, number)
        try:
            yield
        finally:
            for number in EXIT_CODES:
                loop.remove_signal_handler(number)

    def on_signal(self, number: int) -> None:
        self.signals.append(number)
        if len(self.signals) == 1:
            self.say(f"stopping: {self.application.jobs} requests in progress have {self.drain_s:g} s to finish")
            self.application.drain()
            self.draining = asyncio.get_running_loop().create_task(self.drain())

    async def drain(self) -> None:
        """Wait for the requests in progress, then end those that are left, then let uvicorn close."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.drain_s
        while self.application.jobs and loop.time() < until and len(self.signals) == 1:
            await asyncio.sleep(0.05)
        self.application.cut()
        until = loop.time() + 2.0
        while self.application.jobs and loop.time() < until:
            await asyncio.sleep(0.02)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises UserError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio spares such from Nagle's delay
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # of each connection, too
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise UserError(f"host={host} port={port} cannot be listened on: {error.strerror or error}") from None
    return sock


def settings_of(application: Application, protocol: type[PatientProtocol] = PatientProtocol) -> uvicorn.Config:
    """Return how an application is served. protocol: what speaks with each connection."""
    return uvicorn.Config(
        application.asgi,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        backlog=1024,
    )


def serve(application: Application, config: ServeConfig, say: Say, listening: Callable[[str], None]) -> int:
    """Serve until a signal; returns the exit code. listening: is called with the server's address once it answers."""
    sock = listen(config.host, config.port)
    address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{sock.getsockname()[1]}"
    server = Server(settings_of(application), application, config.drain_s, say, lambda: listening(address))
    try:
        asyncio.run(server.serve(sockets=[sock]))
    finally:
        application.stop()
    return EXIT_CODES.get(signal.Signals(server.signals[0]), 1) if server.signals else 1

"""Who is still there: each rank holds a connection to rank 0, which the system closes when a process ends, however it
ends. Rank 0 tells the others of the first that is lost, so all know within a moment, whatever they wait for.

    rank R to rank 0    hello R TOKEN      then   left | failed CODE
    rank 0 to each      welcome            then   left | lost R CODE     (CODE - for a rank that ended without a word)

A machine that is gone, or its network, closes nothing: after SILENCE seconds without an answer it is lost, too.
"""

import os
import secrets
import selectors
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

SILENCE = 30
LONGEST = 200  # bytes of a message


@dataclass(frozen=True)
class Lost:
    """A rank that ended before the run did. code: its exit code, None where it ended without a word."""

    rank: int
    code: int | None = None


OnLost = Callable[[Lost], object]


class Hub:
    """Rank 0's end of all lifelines. `on_lost` is called once, in a thread of the hub's, when all others know."""

    def __init__(self, address: str, on_lost: OnLost):
        self.server = listener(address)
        self.port: int = self.server.getsockname()[1]
        self.token = secrets.token_hex(16)  # whoever else finds the port does not know it
        self.on_lost = on_lost
        self.present: dict[socket.socket, int] = {}
        self.heard: set[int] = set()  # ranks that have said hello
        self.changed = threading.Condition()
        self.over = False
        close_in_forks(self)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for(self, ranks: int, patience: float) -> None:
        """Wait until so many ranks have said hello."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.heard) >= ranks, patience)

    def wait_until_all_left(self, patience: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.present, patience)

    def lose(self, lost: Lost) -> None:
        """Tell all that a rank is lost, unless the run is over."""
        with self.changed:
            if self.over:
                return
            self.over = True
            self._tell(f"lost {lost.rank} {'-' if lost.code is None else lost.code}")
        self.on_lost(lost)

    def leave(self, code: int = 0) -> None:
        """Tell the others that rank 0 is through, or has failed and said why."""
        with self.changed:
            if not self.over:
                self.over = True
                self._tell(f"lost 0 {code}" if code else "left")

    def close(self) -> None:
        for connection in (self.server, *list(self.present)):
            connection.close()

    def _tell(self, line: str) -> None:
        for connection in self.present:
            with suppress(OSError):
                connection.sendall(f"{line}\n".encode())

    def _listen(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self.server, selectors.EVENT_READ)
        with suppress(OSError, ValueError):  # closed
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.server:
                        connection, _ = self.server.accept()
                        keep_alive(connection)
                        selector.register(connection, selectors.EVENT_READ, Lines())
                    elif not self._read(key.fileobj, key.data):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]

    def _read(self, connection: socket.socket, lines: "Lines") -> bool:
        """Take what a connection says; False where there will be no more of it."""
        try:
            got = connection.recv(LONGEST)
        except OSError:
            got = b""
        for line in lines.more(got):
            if connection in self.present:
                self._say(connection, line.split())
            elif not self._welcome(connection, line.split()):
                return False
        if not got and (rank := self._forget(connection)) is not None:
            self.lose(Lost(rank))
        return bool(got) and not lines.too_long

    def _welcome(self, connection: socket.socket, words: list[str]) -> bool:
        if len(words) != 3 or words[0] != "hello" or not secrets.compare_digest(words[2], self.token):
            return False
        with self.changed, suppress(OSError):
            connection.sendall(b"welcome\n")
            self.present[connection] = int(words[1])
            self.heard.add(int(words[1]))
            self.changed.notify_all()
        return True

    def _say(self, connection: socket.socket, words: list[str]) -> None:
        rank = self._forget(connection)
        if rank is not None and words[0] == "failed":
            self.lose(Lost(rank, int(words[1])))

    def _forget(self, connection: socket.socket) -> int | None:
        with self.changed:
            rank = self.present.pop(connection, None)
            self.changed.notify_all()
        return rank


class Lifeline:
    """Another rank's end. `on_lost` is called once, in a thread of the lifeline's."""

    def __init__(self, connection: socket.socket, on_lost: OnLost):
        self.connection, self.on_lost = connection, on_lost
        self.over = False
        self.is_done = False  # rank 0 is through
        close_in_forks(self)
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self, code: int = 0) -> None:
        """Tell rank 0 that this one is through, or has failed and said why."""
        self.over = True
        with suppress(OSError):
            self.connection.sendall(f"failed {code}\n".encode() if code else b"left\n")

    def close(self) -> None:
        self.connection.close()

    def _listen(self) -> None:
        lost, lines = Lost(0), Lines()
        while got := received(self.connection):
            for line in lines.more(got):
                words = line.split()
                if words[0] == "left":
                    self.is_done = True
                    return
                if words[0] == "lost":
                    self._lose(Lost(int(words[1]), None if words[2] == "-" else int(words[2])))
        self._lose(lost)

    def _lose(self, lost: Lost) -> None:
        if not self.over:
            self.over = True
            self.on_lost(lost)


def connect(address: str, port: int, token: str, rank: int, patience: float) -> socket.socket | None:
    """Return a lifeline's connection, if the hub with that token is there and says welcome."""
    try:
        connection = socket.create_connection((address, port), timeout=patience)
        connection.sendall(f"hello {rank} {token}\n".encode())
        welcome = connection.recv(len(b"welcome\n"), socket.MSG_WAITALL)
    except OSError:
        return None
    if welcome != b"welcome\n":
        connection.close()
        return None
    connection.settimeout(None)
    keep_alive(connection)
    return connection


class Lines:
    """Cuts what arrives into lines."""

    def __init__(self) -> None:
        self.rest = b""

    def more(self, got: bytes) -> list[str]:
        *lines, self.rest = (self.rest + got).split(b"\n")
        return [line.decode("ascii", "backslashreplace") for line in lines if line.strip()]

    @property
    def too_long(self) -> bool:
        return len(self.rest) > LONGEST


def listener(address: str, port: int = 0) -> socket.socket:
    """Return a listening socket: on loopback where all ranks are on this machine, else on all its addresses."""
    if address in ("127.0.0.1", "localhost"):
        return socket.create_server((address, port), backlog=4096)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=4096)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(LONGEST)
    except OSError:
        return b""


def keep_alive(connection: socket.socket) -> None:
    """Have the system ask the other end whether it is there, and close the connection after SILENCE seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", (SILENCE - 10) // 5)):
        if hasattr(socket, name):  # Linux; elsewhere the system's own times
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def close_in_forks(end: "Hub | Lifeline") -> None:
    """Close this end in processes forked from this one, as data workers are: they would keep it alive."""
    kept = weakref.ref(end)

    def close() -> None:
        if (end := kept()) is not None:
            end.close()

    os.register_at_fork(after_in_child=close)

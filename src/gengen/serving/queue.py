"""Whose turn it is: deficit round-robin over clients (Shreedhar and Varghese 1996), in order of arrival for each."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

QUANTUM = 128  # tokens that a client's turn is worth


class FairQueue(Generic[T]):
    """Things that wait, each with its client and its cost in tokens.

    rows: how many can run at once; while others wait, one client holds at most half of them.
    """

    def __init__(self, rows: int):
        self.half = max(1, rows // 2)
        self.lines: dict[str, deque[tuple[T, int]]] = {}
        self.turns: deque[str] = deque()  # the clients that wait, the next one first
        self.credit: dict[str, int] = {}  # tokens

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def add(self, client: str, item: T, cost: int) -> None:
        if client not in self.lines:
            self.lines[client], self.credit[client] = deque(), 0
            self.turns.append(client)
        self.lines[client].append((item, cost))

    def take(self, held: Mapping[str, int]) -> T | None:
        """Return the next thing to run, None if nothing waits. held: rows that each client has by now."""
        if not self.turns:
            return None
        below = {client for client in self.turns if held.get(client, 0) < self.half} or set(self.turns)
        while True:
            client = self.turns[0]
            if client in below and self.lines[client][0][1] <= self.credit[client]:
                return self._served(client)
            if client in below:
                self.credit[client] += QUANTUM
            self.turns.rotate(-1)

    def _served(self, client: str) -> T:
        item, cost = self.lines[client].popleft()
        self.credit[client] -= cost
        self._leave_if_empty(client)
        return item

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out all things of a kind, and return them."""
        found = []
        for client, line in list(self.lines.items()):
            found += [item for item, _ in line if unwanted(item)]
            self.lines[client] = deque(entry for entry in line if not unwanted(entry[0]))
            self._leave_if_empty(client)
        return found

    def _leave_if_empty(self, client: str) -> None:
        """A client that waits for nothing keeps no credit, so that none can be saved up."""
        if not self.lines[client]:
            del self.lines[client], self.credit[client]
            self.turns.remove(client)

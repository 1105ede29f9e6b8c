"""A rank that ends is known to all others within a moment, and with it how it ended."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from queue import Empty, Queue

import pytest

from gengen.training import lifeline
from gengen.training.lifeline import Hub, Lifeline, Lost, connect

SOON = 5.0


class Meeting:
    """A hub and some lifelines, all in this process; what each end hears of a lost rank."""

    def __init__(self, others: int):
        self.heard = [Queue[Lost]() for _ in range(others + 1)]
        self.hub = Hub("127.0.0.1", self.heard[0].put)
        self.lines = [Lifeline(self.connection(rank), self.heard[rank].put) for rank in range(1, others + 1)]

    def connection(self, rank: int) -> socket.socket:
        connection = connect("127.0.0.1", self.hub.port, self.hub.token, rank, SOON)
        assert connection is not None
        return connection

    def news(self, rank: int) -> Lost | None:
        """What a rank hears soon; None for silence."""
        try:
            return self.heard[rank].get(timeout=SOON if self.hub.over else 0.3)
        except Empty:
            return None


@pytest.fixture
def three() -> Iterator[Meeting]:
    meeting = Meeting(2)
    yield meeting
    meeting.hub.leave()
    for end in (meeting.hub, *meeting.lines):
        end.close()


def test_a_connection_that_closes_is_a_rank_that_is_gone(three: Meeting) -> None:
    three.lines[1].connection.shutdown(socket.SHUT_RDWR)  # as the system does when a process is killed
    assert three.heard[0].get(timeout=SOON) == Lost(2) and three.news(1) == Lost(2)


def test_a_rank_that_fails_says_with_what_exit_code(three: Meeting) -> None:
    three.lines[0].leave(2)
    assert three.heard[0].get(timeout=SOON) == Lost(1, 2) and three.news(2) == Lost(1, 2)
    assert three.heard[1].empty()


def test_who_leaves_is_not_lost(three: Meeting) -> None:
    three.lines[0].leave()
    three.lines[0].connection.shutdown(socket.SHUT_RDWR)
    assert three.news(0) is None and three.news(2) is None
    three.hub.leave()
    three.lines[1].leave()
    three.hub.wait_until_all_left(SOON)
    assert not three.hub.present
    until = time.monotonic() + SOON
    while not three.lines[1].is_done and time.monotonic() < until:
        time.sleep(0.01)
    assert three.lines[1].is_done and three.heard[2].empty()


def test_rank_0_that_fails_is_known_to_all(three: Meeting) -> None:
    three.hub.leave(2)
    assert [three.heard[rank].get(timeout=SOON) for rank in (1, 2)] == [Lost(0, 2)] * 2


def test_rank_0_that_is_killed_is_known_to_all() -> None:
    heard, (ready, wrote) = Queue[Lost](), os.pipe()
    if not (rank_0 := os.fork()):
        hub = Hub("127.0.0.1", lambda lost: None)
        os.write(wrote, f"{hub.port} {hub.token}".encode())
        time.sleep(60)
        os._exit(1)
    port, token = os.read(ready, 100).decode().split()
    connections = [connect("127.0.0.1", int(port), token, rank, SOON) for rank in (1, 2)]
    lines = [Lifeline(connection, heard.put) for connection in connections if connection]
    os.kill(rank_0, signal.SIGKILL)
    os.waitpid(rank_0, 0)
    assert len(lines) == 2 and [heard.get(timeout=SOON) for _ in lines] == [Lost(0)] * 2


def test_a_stranger_is_no_rank_and_disturbs_nothing(three: Meeting) -> None:
    """Somebody who tries all ports of a machine, say."""
    assert connect("127.0.0.1", three.hub.port, "guessed", 1, SOON) is None
    for sent in (b"", b"hello\n", b"lost 1 2\nleft\nfailed 3\n", b"x" * 10_000, b"\xff\n", b"hello 1 \xff\n"):
        with socket.create_connection(("127.0.0.1", three.hub.port), timeout=SOON) as stranger:
            stranger.sendall(sent)
    assert three.news(0) is None and sorted(three.hub.present.values()) == [1, 2]
    three.connection(3)  # the hub still listens


def test_words_may_arrive_in_pieces_or_together() -> None:
    lines = lifeline.Lines()
    assert [lines.more(part) for part in (b"hel", b"lo 1 t\nle", b"ft\nx\n")] == [[], ["hello 1 t"], ["left", "x"]]


def test_a_fork_does_not_keep_the_lifeline_of_a_process_that_is_killed(three: Meeting) -> None:
    """As a data worker would that outlives its rank by seconds."""
    ready, wrote = os.pipe()
    if not (rank := os.fork()):
        line = Lifeline(three.connection(7), lambda lost: None)
        if worker := os.fork():
            os.write(wrote, b"%d " % worker)
        time.sleep(60)
        os._exit(0 if line else 1)
    worker = int(os.read(ready, 20))
    os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    try:
        assert three.heard[0].get(timeout=SOON) == Lost(7)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_machine_that_falls_silent_is_lost_in_half_a_minute() -> None:
    """By the system's own questions: (times asked) x (seconds between them), after a first wait."""
    with socket.socket() as end:
        lifeline.keep_alive(end)
        idle, between, times = (
            end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and idle + between * times == 30

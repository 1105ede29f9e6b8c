"""Whose turn it is."""

from collections import Counter
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from gengen.serving.queue import QUANTUM, FairQueue


def drained(queue: FairQueue[str], rows: int, lasting: int) -> list[str]:
    """The order in which things run that each last `lasting` turns, on `rows` rows."""
    running: list[tuple[str, int]] = []
    order, now = list[str](), 0
    while len(queue) or running:
        running = [(client, end) for client, end in running if end > now]
        while len(running) < rows and (item := queue.take(Counter(client for client, _ in running))) is not None:
            order.append(item)
            running.append((item[0], now + lasting))
        now += 1
    return order


def test_one_client_is_served_in_its_order() -> None:
    queue: FairQueue[str] = FairQueue(rows=4)
    for i in range(9):
        queue.add("a", f"a{i}", QUANTUM * (i % 3))
    assert drained(queue, 4, 3) == [f"a{i}" for i in range(9)]


def test_equal_clients_get_equal_shares() -> None:
    """Of things that cost a turn each, the turns go round; of dearer ones as many tokens go to each."""
    queue: FairQueue[str] = FairQueue(rows=100)
    for i in range(30):
        queue.add("a", f"a{i}", QUANTUM)
        queue.add("b", f"b{i}", QUANTUM // 2)
    order = [queue.take({}) for _ in range(30)]
    assert sum(item[0] == "b" for item in order if item) == 20, "half the cost, twice as many"
    assert all(len(list(group)) <= 2 for _, group in groupby(item[0] for item in order if item))


def test_a_client_with_one_request_does_not_wait_for_sixty_four() -> None:
    """It gets the next row that becomes free, and the other one keeps half of them at most while it waits."""
    queue: FairQueue[str] = FairQueue(rows=8)
    for i in range(64):
        queue.add("a", f"a{i}", 500)
    queue.add("b", "b0", 500)
    assert "b0" in drained(queue, 8, 5)[:8]
    held = Counter(a=8)
    for i in range(9):
        queue.add("a", f"a{i}", 500)
    queue.add("b", "b1", 500)
    assert queue.take(held) == "b1", "all rows are the other's: the next one is not"


def test_half_of_the_rows_is_a_limit_only_while_others_wait() -> None:
    queue: FairQueue[str] = FairQueue(rows=4)
    for i in range(4):
        queue.add("a", f"a{i}", 1)
    assert [queue.take(Counter(a=i)) for i in range(4)] == ["a0", "a1", "a2", "a3"]
    for i in range(4):
        queue.add("a", f"a{i}", 1)
        queue.add("b", f"b{i}", 1)
    held = Counter[str]()
    for _ in range(4):
        held[(queue.take(held) or "")[0]] += 1
    assert held == Counter(a=2, b=2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 20_000)), max_size=40), st.integers(1, 9))
def test_all_that_waits_is_served_once(waiting: list[tuple[str, int]], rows: int) -> None:
    queue: FairQueue[str] = FairQueue(rows)
    for i, (client, cost) in enumerate(waiting):
        queue.add(client, f"{client}{i}", cost)
    order = drained(queue, rows, 2)
    assert sorted(order) == sorted(f"{client}{i}" for i, (client, _) in enumerate(waiting))
    for name in "abc":
        numbers = [int(item[1:]) for item in order if item[0] == name]
        assert numbers == sorted(numbers)


def test_what_is_removed_leaves_no_trace() -> None:
    queue: FairQueue[str] = FairQueue(rows=2)
    queue.add("a", "a0", 1)
    queue.add("b", "b0", 1)
    assert queue.remove(lambda item: item == "a0") == ["a0"]
    assert queue.take({}) == "b0" and queue.take({}) is None
    assert not queue.lines and not queue.credit and not queue.turns

"""A real process: clients that leave, dribble, do not read or come all at once, and what stops it."""

import asyncio
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gengen.generation.text.generator import TextGenerator
from helpers.served import ENDLESS, Process, both, connection, process, request

BODY: dict[str, Any] = {"model": "story", "prompt": "Once"}


def all_of(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    try:
        while part := sock.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def expected(story: TextGenerator, seed: int, max_tokens: int) -> str:
    return story.generate("Once", seed=seed, max_tokens=max_tokens, temperature=1.0, overflow="end")[0].text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_rows(server: Process, streamed: bool) -> None:
    """Running or queued, streamed or not: there are 8 rows, 10 texts are wanted."""
    before, began = server.outcomes(), server.figure("gengen_requests_accepted_total")
    with connection(server, request("completions", BODY | ENDLESS | {"n": 4, "stream": streamed})) as first:
        with connection(server, request("completions", BODY | ENDLESS | {"n": 4, "stream": streamed})):
            with connection(server, request("completions", BODY | ENDLESS | {"n": 2, "stream": streamed})):
                server.until(lambda: server.figure("gengen_requests_accepted_total") == began + 3)
                server.until(lambda: server.figure("gengen_rows_running") == 8)
            server.until(lambda: server.figure("gengen_requests_in_progress") == 2)
        server.until(lambda: server.figure("gengen_rows_running") == 4)
        if streamed:
            assert first.recv(4096).startswith(b"HTTP/1.1 200 OK")
    server.until(server.quiet)
    assert server.outcomes()["cancelled"] == before["cancelled"] + 3


def storm(server: Process, story: TextGenerator, clients: int) -> None:
    """Clients cut at random points; those that stay get what they would get alone."""
    texts = {seed: expected(story, seed, 12) for seed in range(8)}
    draw = random.Random(clients)
    plans = [
        (draw.randrange(8), draw.random() < 0.6, draw.random() * 0.4, draw.random() < 0.5) for _ in range(clients)
    ]

    def one(plan: tuple[int, bool, float, bool]) -> None:
        seed, leaves, after, streamed = plan
        tree = BODY | {"seed": seed, "max_tokens": 12, "stream": streamed}
        if leaves:
            with connection(server, request("completions", tree)):
                time.sleep(after)
            return
        while (answer := server.post("completions", **tree | {"stream": False})).status_code == 429:
            time.sleep(0.1)
        assert answer.json()["choices"][0]["text"] == texts[seed]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, plans))
    server.until(server.quiet)
    assert server.figure("gengen_requests_accepted_total") == sum(server.outcomes().values())


def test_thirty_clients_cut_at_random(server: Process, story: TextGenerator) -> None:
    storm(server, story, 30)


@pytest.mark.slow
def test_five_hundred_clients_cut_at_random(server: Process, story: TextGenerator) -> None:
    storm(server, story, 500)


def crowd(server: Process, story: TextGenerator, clients: int) -> None:
    """All at once: each is answered, by its own text or by 429 with Retry-After; none is lost, none hangs."""
    texts = {seed: expected(story, seed, 6) for seed in range(8)}

    async def test() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            sent = [
                client.post("/v1/completions", json=BODY | {"seed": i % 8, "max_tokens": 6}) for i in range(clients)
            ]
            return await asyncio.gather(*sent)

    answers = asyncio.run(test())
    for i, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == texts[i % 8]
        else:
            assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    counted = Counter(answer.status_code for answer in answers)
    assert counted[200] >= 16 and counted[429], counted


def test_a_crowd_is_answered_or_sent_away(server: Process, story: TextGenerator) -> None:
    crowd(server, story, 80)


@pytest.mark.slow
def test_a_thousand_at_once(runs: Path, tmp_path: Path, story: TextGenerator) -> None:
    """With the limits of a server: so many clients take longer than the second of other tests."""
    with process(both(runs), tmp_path / "said.txt") as server:
        crowd(server, story, 1000)


def test_a_client_that_does_not_read_is_cut(server: Process, story: TextGenerator) -> None:
    """After `stall_s`, its row is free and its connection gone; a neighbour's text is not changed by it."""
    before = server.outcomes()["stalled"]
    tree = BODY | ENDLESS | {"stream": True, "logprobs": 20, "n": 4}
    with connection(server, request("completions", tree), buffer=4096) as sock:
        server.until(lambda: server.figure("gengen_rows_running") == 4)
        neighbour = server.post("completions", **BODY, seed=3, max_tokens=40).json()
        assert neighbour["choices"][0]["text"] == expected(story, 3, 40)
        server.until(lambda: server.outcomes()["stalled"] == before + 1, 30)
        server.until(server.quiet)
        assert b"[DONE]" not in all_of(sock), "the connection is closed, and not by an end"


def test_a_body_that_dribbles_is_refused(server: Process) -> None:
    """After `body_s` in all, however often a byte comes."""
    with connection(server, request("completions", BODY, length=4000)) as sock:
        began = time.monotonic()
        try:
            while time.monotonic() < began + 5 and not readable(sock):
                sock.sendall(b" ")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert all_of(sock).startswith(b"HTTP/1.1 408 ") and time.monotonic() - began < 15


def readable(sock: socket.socket) -> bool:
    import select

    return bool(select.select([sock], [], [], 0)[0])


@pytest.mark.parametrize("sent", [b"", b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_head_that_dribbles_or_never_comes_is_cut(server: Process, sent: bytes) -> None:
    with connection(server, sent) as sock:
        began = time.monotonic()
        try:
            while time.monotonic() < began + 5 and not readable(sock):
                if sent:
                    sock.sendall(b"a")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert all_of(sock) == b"" and time.monotonic() - began < 15


def test_a_second_request_that_dribbles_is_cut_too(server: Process) -> None:
    """On a connection that was good for one."""
    get = b"GET /version HTTP/1.1\r\nHost: localhost\r\n"
    with connection(server, get + b"\r\n") as sock:
        answer = b""
        while not answer.endswith(b"}"):
            answer += sock.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 ")
        sock.sendall(get)
        began = time.monotonic()
        assert all_of(sock) == b"" and time.monotonic() - began < 15


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["no host", "two hosts", "tls", "large head", "negative length", "two lengths", "large chunk", "other host"],
)
def test_what_is_no_request_is_refused(server: Process, sent: bytes) -> None:
    with connection(server, sent) as sock:
        status = all_of_head(sock).split(b" ")[1:2]
        assert status and 400 <= int(status[0]) < 500


def all_of_head(sock: socket.socket) -> bytes:
    found = b""
    while b"\r\n" not in found and (part := sock.recv(4096)):
        found += part
    return found


VALUES = [
    "NaN",
    "1e400",
    "-1",
    "9223372036854775808",
    '"\\ud800"',
    "[" * 40,
    '{"a":1,"a":2}',
    '"x"',
    "[]",
    "{}",
    "true",
]
KEYS = [
    "model",
    "prompt",
    "messages",
    "n",
    "seed",
    "temperature",
    "stop",
    "logit_bias",
    "stream",
    "max_tokens",
    "x" * 999,
]


def malformed(draw: random.Random) -> bytes:
    """A body with what does not belong there: values out of range, bytes changed, the end cut off."""
    pairs = [f'"{draw.choice(KEYS)}": {draw.choice(VALUES)}' for _ in range(draw.randint(0, 3))]
    raw = bytearray(("{" + ", ".join(['"model": "story"', *pairs]) + "}").encode())
    if draw.random() < 0.3:
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw[: draw.randint(1, len(raw))] if draw.random() < 0.3 else raw)


def send_malformed(server: Process, story: TextGenerator, count: int) -> None:
    """4xx in OpenAI's form, never 500, but for the few that are good; a text drawn meanwhile is not changed."""
    draw, refused = random.Random(0), 0
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, timeout=20) as client:
        neighbour = pool.submit(server.post, "completions", **BODY, seed=1, max_tokens=100)
        for i in range(count):
            path = ("completions", "chat/completions", "tokenize")[i % 3]
            headers = {"content-type": "application/json"}
            answer = client.post(f"/v1/{path}", content=malformed(draw), headers=headers)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
            if answer.status_code != 200:
                refused += 1
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert neighbour.result().json()["choices"][0]["text"] == expected(story, 1, 100)
    assert refused > 0.9 * count


def test_malformed_bodies_are_answered_with_errors_of_ours(server: Process, story: TextGenerator) -> None:
    send_malformed(server, story, 60)


@pytest.mark.slow
def test_a_thousand_malformed_bodies(server: Process, story: TextGenerator) -> None:
    send_malformed(server, story, 1000)


def test_health_does_not_wait_for_the_engine(server: Process) -> None:
    """While all rows draw and a body of 1 MiB is read."""
    with connection(server, request("completions", BODY | ENDLESS | {"n": 8, "stream": True, "max_tokens": 2000})):
        server.until(lambda: server.figure("gengen_rows_running") == 8)
        took = []
        for _ in range(10):
            began = time.monotonic()
            assert server.get("/health").status_code == 200
            took.append(time.monotonic() - began)
    assert sorted(took)[len(took) // 2] < 1.0
    server.until(server.quiet)


# --- how it is stopped


def stream_to_the_end(server: Process, tree: dict[str, Any], found: list[str]) -> threading.Thread:
    def read() -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=tree | {"stream": True}, timeout=60) as answer:
            found.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    server.until(lambda: server.figure("gengen_rows_running") >= 1)
    return thread


def test_sigterm_lets_streams_end_and_refuses_the_new(runs: Path, tmp_path: Path, story: TextGenerator) -> None:
    with process(both(runs), tmp_path / "said.txt") as server:
        lines: list[str] = []
        settings = {"seed": 2, "max_tokens": 100, "logit_bias": {"0": -100}}
        thread = stream_to_the_end(server, BODY | settings, lines)
        os.kill(server.pid, signal.SIGTERM)
        server.until(lambda: server.get("/ready").status_code == 503)
        refused = server.post("completions", **BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        thread.join()
        assert server.ended() == 143
        assert lines[-1] == "data: [DONE]"
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
        ours = {"temperature": 1.0, "overflow": "end", "logit_bias": {0: -100}}
        assert text == story.generate("Once", seed=2, max_tokens=100, **ours)[0].text
        assert "Traceback" not in server.said.read_text()


@pytest.mark.parametrize("signals, within", [([signal.SIGTERM], 8), ([signal.SIGINT, signal.SIGINT], 8)])
def test_what_takes_too_long_is_cut_and_says_so(
    runs: Path, tmp_path: Path, signals: list[signal.Signals], within: float
) -> None:
    """When `drain_s` is over, or by a second signal: the answers end cleanly where they are."""
    drain = 1 if len(signals) == 1 else 60
    with process(both(runs, f"drain_s={drain}"), tmp_path / "said.txt") as server:
        lines: list[str] = []
        thread = stream_to_the_end(server, BODY | ENDLESS, lines)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(server.post, "completions", **BODY | ENDLESS)
            server.until(lambda: server.figure("gengen_rows_running") == 2)
            began = time.monotonic()
            for number in signals:
                os.kill(server.pid, number)
                time.sleep(0.2)
            answer = whole.result()
        thread.join()
        assert server.ended() == {signal.SIGTERM: 143, signal.SIGINT: 130}[signals[0]]
        assert time.monotonic() - began < within
        last = json.loads(lines[-2][6:])["choices"][0]
        assert lines[-1] == "data: [DONE]" and last["finish_reason"] == "length"
        choice = answer.json()["choices"][0]
        assert answer.status_code == 200 and answer.headers["x-gengen-drained"] == "true"
        assert choice["finish_reason"] == "length" and choice["text"]
        assert last["gengen"] == choice["gengen"] == {"finish_reason": "interrupted"}


def test_a_deadline_ends_what_takes_too_long(runs: Path, tmp_path: Path) -> None:
    with process(both(runs, "deadline_s=1"), tmp_path / "said.txt") as server:
        lines: list[str] = []
        thread = stream_to_the_end(server, BODY | ENDLESS, lines)
        answer = server.post("completions", **BODY | ENDLESS)
        thread.join()
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
        assert json.loads(lines[-1][6:])["error"]["code"] == "request_timeout", "an error in the stream, and no [DONE]"
        server.until(server.quiet)
        assert server.outcomes()["deadline"] == 2


@pytest.mark.parametrize(
    "settings, says",
    [
        (["host=0.0.0.0"], "host=0.0.0.0 can be reached by others"),
        (["api_key_env=NO_SUCH_KEY"], "api_key_env=NO_SUCH_KEY: a key has 8"),
        (["prot=1"], "did you mean port"),
    ],
)
def test_what_it_does_not_start_with(
    runs: Path, settings: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from gengen.cli import main

    assert main(["serve", str(runs / "story"), *settings]) == 2
    assert says in capsys.readouterr().err


def test_two_runs_of_one_name_and_a_port_that_is_taken(
    runs: Path, server: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    from gengen.cli import main

    assert main(["serve", str(runs / "story"), str(runs / "story"), "port=0"]) == 2
    assert "two of the runs are called story" in capsys.readouterr().err
    assert main(["serve", str(runs / "story"), f"port={server.port}", "device=cpu"]) == 2
    assert f"port={server.port} cannot be listened on" in capsys.readouterr().err

"""Who may come in. Each refusal is checked at the application itself, on every route where it matters."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from gengen.config.schema import build
from gengen.config.serve import ServeConfig
from gengen.errors import UserError
from gengen.generation.text.generator import TextGenerator
from gengen.serving.guard import MAX_BODY
from helpers.served import in_process, served_here

KEY = "a-key-of-some-length"
COMPLETION = {"model": "story", "prompt": "a", "max_tokens": 2}


def answers(
    runs: Path, *requests: dict[str, Any], keys: tuple[str, ...] = (), **settings: Any
) -> list[httpx.Response]:
    """What the application answers to some requests, its engines running."""

    async def test() -> list[httpx.Response]:
        application = served_here(runs, keys, **settings)
        application.start()
        try:
            async with in_process(application) as client:
                return [await client.request(**{"method": "POST", "url": "/v1/completions"} | one) for one in requests]
        finally:
            application.stop()

    return asyncio.run(test())


def codes(responses: list[httpx.Response]) -> list[tuple[int, str]]:
    """Status and code of each; every error is in OpenAI's form."""
    found = []
    for response in responses:
        error = response.json().get("error", {}) if response.status_code >= 400 else {}
        assert response.status_code < 400 or error.keys() == {"message", "type", "param", "code"}
        found.append((response.status_code, error.get("code", "")))
    return found


def test_every_route_wants_the_key(runs: Path) -> None:
    """A walk of the route table, and a route that is not there: default deny."""
    routes = [(method, route.path) for route in served_here(runs).routes for method in route.methods or ()]
    assert len(routes) > 12
    walk = [{"method": m, "url": p.replace("{name}", "story")} for m, p in [*routes, ("GET", "/other"), ("PUT", "/")]]
    for response in answers(runs, *walk, keys=(KEY,)):
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é".encode()],
)
def test_a_wrong_key_is_refused(runs: Path, sent: Any) -> None:
    headers = {} if sent is None else {"authorization": sent}
    assert codes(answers(runs, {"json": COMPLETION, "headers": headers}, keys=(KEY,))) == [(401, "invalid_api_key")]


def test_each_key_of_several_opens(runs: Path) -> None:
    requests = [{"json": COMPLETION, "headers": {"authorization": f"bearer {key}"}} for key in (KEY, "another-key")]
    assert codes(answers(runs, *requests, keys=(KEY, "another-key"))) == [(200, "")] * 2


@pytest.mark.parametrize(
    "host, status",
    [
        ("127.0.0.1", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:80", 200), ("mine.example", 200),
        ("127.0.0.1.evil.example", 403), ("127.0.0.2", 403), ("evil.example", 403), ("localhost.", 403), ("", 403),
        ("localhost:80:80", 403), ("localhost@evil.example", 403), ("localhost/", 403), ("mine.example.org", 403),
    ],
)  # fmt: skip
def test_only_names_of_ours_are_answered(runs: Path, host: str, status: int) -> None:
    """A page whose name resolves to this machine calls it by that name (DNS rebinding)."""
    answer = answers(
        runs, {"method": "GET", "url": "/v1/models", "headers": {"host": host}}, allowed_hosts=["mine.example"]
    )
    assert answer[0].status_code == status


def test_a_request_without_a_host_or_with_two_is_refused(runs: Path) -> None:
    async def status(headers: list[tuple[bytes, bytes]]) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "GET", "path": "/version", "headers": headers, "query_string": b""}
        await served_here(runs).asgi(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(status([])) == 403
    assert asyncio.run(status([(b"host", b"localhost"), (b"host", b"localhost")])) == 403
    assert asyncio.run(status([(b"host", b"localhost")])) == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "https://page.example"}, 200),
        ({"origin": "https://page.example", "sec-fetch-site": "cross-site"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://page.example.evil.example"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "file://127.0.0.1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_pages_of_others_change_nothing(runs: Path, headers: dict[str, str], status: int) -> None:
    answer = answers(runs, {"json": COMPLETION, "headers": headers}, allow_origins=["https://page.example"])[0]
    assert answer.status_code == status
    allowed = headers.get("origin") == "https://page.example"
    assert (answer.headers.get("access-control-allow-origin") == "https://page.example") == allowed


def test_a_preflight_is_answered_without_a_key_and_allows_only_what_was_named(runs: Path) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
    requests = [
        {"method": "OPTIONS", "headers": {"origin": o, **asks}}
        for o in ("https://page.example", "https://evil.example")
    ]
    good, bad = answers(runs, *requests, keys=(KEY,), allow_origins=["https://page.example"])
    assert good.status_code == bad.status_code == 204
    assert good.headers["access-control-allow-headers"] == asks["access-control-request-headers"]
    assert "access-control-allow-origin" not in bad.headers
    assert not any("credentials" in name for name in good.headers)


def test_what_is_no_json_or_too_large_is_refused(runs: Path) -> None:
    form = {"content-type": "text/plain"}
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    large = b'{"a": "' + b"a" * MAX_BODY + b'"}'
    json_type = {"content-type": "application/json"}

    async def dribbled() -> Any:
        for i in range(0, len(large), 2**18):
            yield large[i : i + 2**18]

    requests = [
        {"content": b"{}", "headers": form}, {"content": b"{}"}, {"content": b"{}", "headers": packed},
        {"content": large, "headers": json_type}, {"content": dribbled(), "headers": json_type},
        {"content": b"", "headers": json_type},
    ]  # fmt: skip
    found = codes(answers(runs, *requests))
    assert found == [*[(415, "unsupported_media_type")] * 3, *[(413, "body_too_large")] * 2, (400, "invalid_json")]


def test_ids_of_requests_are_echoed_if_they_are_safe(runs: Path) -> None:
    get = {"method": "GET", "url": "/version"}
    ids = ["mine-1.2_3", "a" * 64, "a" * 65, "a b", "<b>"]
    found = answers(runs, *[get | {"headers": {"x-request-id": one}} for one in ids], get)
    echoed = [answer.headers["x-request-id"] for answer in found]
    assert echoed[:2] == ids[:2] and len(set(echoed)) == 6 and all(len(one) == 32 for one in echoed[2:])


def test_what_fails_here_says_only_its_number(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*words: Any) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("gengen.serving.text.requests_of", fails)
    answer = answers(runs, {"json": COMPLETION})[0]
    assert codes([answer]) == [(500, "internal_error")]
    assert "secret" not in answer.text and answer.headers["x-request-id"] in answer.text
    assert "a secret detail" in caplog.text


def test_the_log_has_one_line_a_request_whatever_its_path_and_never_the_key(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = {"method": "GET", "url": "/a%0d%0aINFO%20forged%1b[31m", "headers": {"authorization": f"Bearer {KEY}"}}
    assert answers(runs, request, keys=(KEY,))[0].status_code == 404
    lines = [record.getMessage() for record in caplog.records if record.name == "gengen.serving"]
    assert len(lines) == 1 and lines[0].startswith(r"GET /a\r\nINFO forged\x1b[31m 404")
    assert KEY not in caplog.text


def test_requests_in_progress_are_bounded(runs: Path) -> None:
    async def test() -> list[int]:
        application = served_here(runs, max_requests=3)
        application.start()
        body = COMPLETION | {"max_tokens": 60, "logit_bias": {"0": -100}}
        try:
            async with in_process(application) as client:
                sent = [client.post("/v1/completions", json=body) for _ in range(8)]
                return [answer.status_code for answer in await asyncio.gather(*sent)]
        finally:
            application.stop()

    found = asyncio.run(test())
    assert found.count(200) == 3 and found.count(429) == 5


# --- the config


def config(**settings: Any) -> ServeConfig:
    return build(ServeConfig, {"runs": ["runs/a"], **settings})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_no_address_for_others_without_a_key(host: str) -> None:
    with pytest.raises(UserError, match=f"host={host} can be reached by others: api_key_env"):
        config(host=host)
    assert config(host=host, api_key_env="MY_KEY")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machines_own_addresses_need_none(host: str) -> None:
    assert config(host=host).keys({}) == []


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n\nanother-key\n")
    assert config(api_key_env="MINE").keys({"MINE": KEY}) == [KEY]
    assert config(api_key_file=str(tmp_path / "keys")).keys({}) == [KEY, "another-key"]


@pytest.mark.parametrize("key", [None, "", "short", "with\x07bell-in-it", "é" * 20])
def test_what_is_no_key_is_refused_without_showing_it(key: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a key has 8 printable ASCII characters") as error:
        config(api_key_env="MINE").keys({} if key is None else {"MINE": key})
    assert not key or key not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        config(api_key_file=str(tmp_path / "none")).keys({})


@pytest.mark.parametrize("origin", ["*", "page.example", "https://", "https://page.example/", "https://*.example"])
def test_origins_are_written_exactly(origin: str) -> None:
    with pytest.raises(UserError, match="write an origin exactly"):
        config(allow_origins=[origin])


def test_prompts_of_several_keys_are_not_shared(runs: Path) -> None:
    """What is reused is counted, and with two keys it is nothing."""
    long = {"model": "story", "prompt": "a" * 200, "max_tokens": 1}
    for keys, reused in (((KEY,), [0, 192]), ((KEY, "another-key"), [0, 0])):
        headers = {"authorization": f"Bearer {keys[-1]}"}
        found = answers(runs, *[{"json": long, "headers": headers}] * 2, keys=keys)
        assert [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in found] == reused


@pytest.mark.parametrize("how", ["guess", "draft"])
def test_guesses_change_no_text(runs: Path, how: str, story: TextGenerator) -> None:
    settings = {"guess": "lookup"} if how == "guess" else {"draft": str(runs / "story")}
    one = {"model": "story", "prompt": "abcabcabc", "max_tokens": 60, "n": 3, "seed": 4, "logit_bias": {"0": -100}}
    found = answers(runs, {"json": one}, names=("story",), **settings)[0].json()
    ours: dict[str, Any] = {"seed": 4, "n": 3, "max_tokens": 60, "logit_bias": {0: -100}}
    samples = story.generate("abcabcabc", temperature=1.0, overflow="end", **ours)
    assert [choice["text"] for choice in found["choices"]] == [sample.text for sample in samples]


def test_a_draft_has_the_runs_own_tokenizer(runs: Path) -> None:
    with pytest.raises(UserError, match="has another tokenizer"):
        served_here(runs, names=("story",), draft=str(runs / "chat"))

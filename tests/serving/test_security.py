"""What a request cannot make the server do: reach out, open a file, load a run, or import what training does not."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.served import in_process, served_here

NAMES = [
    "../secret",
    "..%2fsecret",
    "/etc/passwd",
    "story/../../secret",
    "story\x00",
    "....//secret",
    "file:///etc/passwd",
    "~root",
]
REACHING: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every file that is opened, every connection and every process, while WATCHING."""
    if WATCHING and event in (
        "open",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "os.system",
        "import",
    ):
        REACHING.append(f"{event} {arguments[:2]}")


WATCHING = False
sys.addaudithook(watch)


def test_no_name_opens_a_file_or_reaches_out(runs: Path) -> None:
    """Names of runs that are paths, messages with URLs of images: refused; an audit hook sees nothing opened."""
    (runs / "secret").write_text("a secret")
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in ("http://127.0.0.1:9/", "file:///etc/passwd")]
    bodies = [{"model": name, "prompt": "a"} for name in NAMES]
    bodies += [{"model": "chat", "messages": [{"role": "user", "content": [part]}]} for part in parts]

    async def test() -> list[int]:
        global WATCHING
        application = served_here(runs)
        application.start()
        try:
            async with in_process(application) as client:
                await client.get("/v1/models")
                await client.post("/v1/completions", json={"model": "story", "prompt": "a", "max_tokens": 2})
                found = []
                WATCHING = True
                for body in bodies:
                    path = "completions" if "prompt" in body else "chat/completions"
                    found.append((await client.post(f"/v1/{path}", json=body)).status_code)
                for name in NAMES[:2] + NAMES[3:4]:
                    found.append((await client.get(f"/v1/models/{name}")).status_code)
                await client.post("/v1/completions", json={"model": "story", "prompt": "a", "max_tokens": 2})
                return found
        finally:
            WATCHING = False
            application.stop()

    statuses = asyncio.run(test())
    assert set(statuses) <= {400, 404} and len(statuses) == len(bodies) + 3
    assert not REACHING, REACHING


def test_the_audit_would_notice(tmp_path: Path) -> None:
    global WATCHING
    WATCHING = True
    try:
        (tmp_path / "a").write_text("")
    finally:
        WATCHING = False
    assert any("open" in what for what in REACHING)
    REACHING.clear()


@pytest.mark.parametrize(
    "code", ["import gengen", "import gengen.cli.train, gengen.cli.sample, gengen.cli", "import gengen.training.run"]
)
def test_only_serve_imports_a_server(code: str) -> None:
    """Nor does asking for its help, which imports no torch either."""
    names = "{'starlette', 'uvicorn', 'h11', 'gengen.serving'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint({names})"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done


def test_help_and_mistakes_import_no_torch() -> None:
    code = (
        "import sys, gengen.cli\n"
        "codes = [gengen.cli.main(['serve', '--help']), gengen.cli.main(['serve', 'runs/a', 'prot=1'])]\n"
        "print(codes, {'torch', 'starlette', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[0, 2] set()", done
    assert "api_key_file" in done.stdout and "did you mean port" in done.stderr


def test_without_the_extra_it_says_what_to_install(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gengen.cli import main

    monkeypatch.setattr("gengen.cli.serve.find_spec", lambda name: None)
    assert main(["serve", str(runs / "story")]) == 2
    assert "starlette, uvicorn not installed: pip install 'gengen[serve]'" in capsys.readouterr().err

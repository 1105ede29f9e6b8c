"""Runs as their own files tell: which there are, their curves, what they drew on the way. Whether and by whom they are
trained makes no difference: files are read, and nothing is asked of a trainer.

No name of a request becomes part of a path: it is looked up in a listing. Nothing outside the folder of runs is read,
wherever a link leads.
"""

import asyncio
import math
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gengen.checkpoints.files import Damaged, read_json
from gengen.checkpoints.listing import inside, nameable, runs_in
from gengen.checkpoints.run import being_written
from gengen.errors import UserError
from gengen.registry import family_and_stage
from gengen.serving.answering import json_response
from gengen.serving.curves import Curves, read_curves
from gengen.serving.protocol import ApiError, invalid

Tree = dict[str, Any]

MAX_RUNS, MAX_FILES = 200, 500  # shown, the newest of each
MAX_PICTURE, MAX_WORDS = 16 * 2**20, 2**20  # bytes of a sample
PICTURE, WORDS = (".png",), (".txt", ".jsonl")
PNG = b"\x89PNG\r\n\x1a\n"


class RunFilesApi:
    """The endpoints, over a folder of runs."""

    def __init__(self, folder: Path):
        self.folder = folder

    async def runs(self, http: HttpRequest) -> Response:
        return json_response(await asyncio.to_thread(listed, self.folder))

    async def metrics(self, http: HttpRequest) -> Response:
        after = http.query_params.get("after", "-1")
        if not after.removeprefix("-").isdecimal() or len(after) > 18:
            raise invalid("after", f"after={after[:40]} is no step: rows of later steps are answered")
        path = self.run(http.path_params["name"]) / "metrics.csv"
        curves = await asyncio.to_thread(read_curves, path, int(after)) if inside(self.folder, path) else Curves()
        return json_response(curves.tree())

    async def samples(self, http: HttpRequest) -> Response:
        files = await asyncio.to_thread(samples_of, self.folder, self.run(http.path_params["name"]))
        data = [{"name": name, "bytes": path.stat().st_size, "kind": kind(path)} for name, path in files.items()]
        return json_response({"data": data[-MAX_FILES:], "left_out": max(0, len(data) - MAX_FILES)})

    async def sample(self, http: HttpRequest) -> Response:
        files = await asyncio.to_thread(samples_of, self.folder, self.run(http.path_params["name"]))
        name = http.path_params["file"]
        if name not in files:
            raise ApiError(404, f"no sample is called {name[:80]!r}", "not_found")
        return await asyncio.to_thread(sent, files[name])

    def run(self, name: str) -> Path:
        found = runs_in(self.folder)
        if name not in found:
            raise ApiError(404, f"no run of the folder is called {name[:80]!r}", "not_found")
        return found[name]


def listed(folder: Path) -> Tree:
    """Return the runs of a folder, those that were written last first."""
    found = sorted(((written(path), name, path) for name, path in runs_in(folder).items()), reverse=True)
    data = [{"name": name, "changed": int(at)} | described(folder, path) for at, name, path in found[:MAX_RUNS]]
    return {"data": data, "left_out": max(0, len(found) - MAX_RUNS)}


def written(run: Path) -> float:
    """Return when a run was last written to, in seconds since 1970."""
    files = [run / name for name in ("metrics.csv", "run.lock", "config.json")]
    return max(path.lstat().st_mtime for path in files if path.is_file())


def described(folder: Path, run: Path) -> Tree:
    """Return what a run's config and lock say of it; of a config that cannot be read, why."""
    training = inside(folder, run / "run.lock") and being_written(run / "run.lock")
    try:
        config = read_json(run / "config.json")
        entry, stage = family_and_stage(config, run)
    except (Damaged, UserError) as error:
        return {"training": training, "error": shown(str(error).replace(str(folder), folder.name), 300)}
    trainer, data = (config.get(group) for group in ("trainer", "data"))
    steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    return {
        "training": training,
        "family": entry.name,
        "kind": entry.kind,
        "stage": stage or "pretrain",
        "data": shown(str(data.get("name")), 80) if isinstance(data, dict) else None,
        "max_steps": steps if isinstance(steps, int) and math.isfinite(steps) else None,
    }


def shown(text: str, most: int) -> str:
    """Return the beginning of a text that a file holds; half a surrogate pair, which no UTF-8 can hold, is a "?"."""
    return text[:most].encode(errors="replace").decode()


# --- samples


def samples_of(folder: Path, run: Path) -> dict[str, Path]:
    """Return the pictures and texts that a run drew while it was trained, by name; a name begins with its step."""
    paths = sorted(path for path in (run / "samples").glob("step-*") if kind(path) and nameable(path))
    return {path.name: path for path in paths if path.is_file() and inside(folder, path)}


def kind(path: Path) -> str:
    """Return picture or text, "" for a file that is neither."""
    return "picture" if path.suffix in PICTURE else "text" if path.suffix in WORDS else ""


def sent(path: Path) -> Response:
    """Return a sample as what its name says it is: whatever is in it, a browser runs none of it."""
    most = MAX_PICTURE if kind(path) == "picture" else MAX_WORDS
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ApiError(404, f"{path.name[:80]}: {error.strerror}", "not_found") from None
    if len(content) > most:
        raise ApiError(413, f"{path.name[:80]} is larger than {most:,} bytes, the most that is shown", "too_large")
    if kind(path) == "picture" and not content.startswith(PNG):
        raise ApiError(415, f"{path.name[:80]} holds no PNG", "unsupported_media_type")
    if kind(path) == "text":
        content = content.decode(errors="replace").encode()
    headers = {
        "content-type": "image/png" if kind(path) == "picture" else "text/plain; charset=utf-8",
        "content-security-policy": "default-src 'none'; sandbox",
    }
    return Response(content, headers=headers)

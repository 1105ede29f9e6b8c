"""Images over HTTP: what is answered is what the library draws, and what cannot be drawn is refused by name."""

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

import gengen
from gengen.generation.image.provenance import read_provenance
from gengen.serving.app import Application
from gengen.serving.calls import Call, CallWorker, Progress
from gengen.serving.image_protocol import MAX_GIVEN
from gengen.serving.images import partial_steps
from gengen.serving.protocol import ApiError
from helpers.image_stand_ins import png
from helpers.served import Test, events, pixels

FAST = {"steps": 3, "sampler": "ddim"}


def images(answer: httpx.Response) -> Tensor:
    assert answer.status_code == 200, answer.text
    return torch.stack([pixels(row["b64_json"]) for row in answer.json()["data"]])


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("unet", {"prompt": "", "n": 4, **FAST}, {**FAST}),
    (
        "unet",
        {"prompt": "dog, 0", "n": 3, "first": 5, "steps": 2, "guidance": 3.0},
        {"labels": ["dog, 0"], "steps": 2, "guidance": 3.0},
    ),
    (
        "unet",
        {"prompt": "dog", "guidance": 3.0, "guide_from": 0.2, "guide_to": 0.8, **FAST},
        {"labels": ["dog"], "guidance": 3.0, "guide_from": 0.2, "guide_to": 0.8, **FAST},
    ),
    (
        "text",
        {"prompt": "a red circle", "n": 2, "negative": "a square", **FAST},
        {"prompts": "a red circle", "negative": "a square", **FAST},
    ),
    ("text", {"prompt": "", **FAST}, {"prompts": "", **FAST}),
    ("gan", {"prompt": "Fox", "n": 2, "truncation": 0.5}, {"labels": ["fox"], "truncation": 0.5}),
    ("vae", {"prompt": "", "n": 2}, {}),
]  # fmt: skip


@pytest.mark.parametrize("run, asked, settings", CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_images_are_those_of_the_library(
    served: Callable[[Test], None], image_runs: Path, run: str, asked: dict[str, Any], settings: dict[str, Any]
) -> None:
    """uint8 for uint8, whole and streamed; each says what samples.json says of it."""
    n, first = asked.get("n", 1), asked.get("first", 0)
    expected = gengen.load(image_runs / run).generate(n, **settings, seed=3, first=first)  # type: ignore[attr-defined]

    async def test(post: Any, application: Application) -> None:
        answer = await post("/v1/images/generations", model=run, seed=3, **asked)
        assert torch.equal(images(answer), expected)
        facts = [row["gengen"] for row in answer.json()["data"]]
        assert [(fact["index"], fact["seed"]) for fact in facts] == [(first + i, 3) for i in range(n)]
        assert "usage" not in answer.json() and answer.json()["output_format"] == "png"
        record, by_a_model = read_provenance(io.BytesIO(base64.b64decode(answer.json()["data"][-1]["b64_json"])))
        assert record is not None and by_a_model and record | facts[-1] == record
        assert (record["run"], record["step"]) == (run, application.runs[run].facts["gengen"]["step"])
        told = events(await post("/v1/images/generations", model=run, seed=3, **asked, stream=True))
        assert [event["type"] for event in told] == ["image_generation.completed"] * n
        assert torch.equal(torch.stack([pixels(event["b64_json"]) for event in told]), expected)
        assert [event["gengen"] for event in told] == facts

    served(test)


def test_an_answer_says_what_samples_json_would(served: Callable[[Test], None], image_runs: Path) -> None:
    from gengen.config.commands import DiffusionSampling, GANSampling

    diffusion = DiffusionSampling(n=2, seed=3, labels=["fox,cat"], **FAST, animation=False)
    gan = GANSampling(n=2, seed=3, labels=["fox,cat"])

    async def test(post: Any, application: Application) -> None:
        for run, config, more in (("unet", diffusion, FAST), ("gan", gan, {})):
            (drawn,) = gengen.load(image_runs / run).drawn(config)  # type: ignore[attr-defined]
            answer = await post("/v1/images/generations", model=run, prompt="fox,cat", n=2, seed=3, **more)
            assert [row["gengen"] for row in answer.json()["data"]] == drawn.facts

    served(test)


def test_without_a_seed_another_is_drawn_and_returned(served: Callable[[Test], None]) -> None:
    async def test(post: Any, application: Application) -> None:
        one, two = [await post("/v1/images/generations", model="gan", prompt="") for _ in range(2)]
        seed = one.json()["data"][0]["gengen"]["seed"]
        assert seed != two.json()["data"][0]["gengen"]["seed"]
        again = await post("/v1/images/generations", model="gan", prompt="", seed=seed)
        assert torch.equal(images(again), images(one))

    served(test)


def test_an_enlarged_image_repeats_its_pixels(served: Callable[[Test], None]) -> None:
    async def test(post: Any, application: Application) -> None:
        small, large = [
            await post("/v1/images/generations", model="gan", prompt="cat", seed=1, size=size)
            for size in ("8x8", "24x24")
        ]
        assert small.json()["size"] == "8x8" and large.json()["size"] == "24x24"
        assert torch.equal(images(large), images(small).repeat_interleave(3, -1).repeat_interleave(3, -2))

    served(test)


def test_estimates_come_on_the_way(served: Callable[[Test], None], image_runs: Path) -> None:
    """Those of the library's frames, evenly over the steps, of every image."""
    frames: list[Tensor] = []
    generator = gengen.load(image_runs / "unet")
    generator.generate(2, seed=3, steps=6, sampler="ddim", frames=frames)  # type: ignore[attr-defined]

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "unet", "prompt": "", "n": 2, "seed": 3, "steps": 6, "sampler": "ddim", "stream": True}
        told = events(await post("/v1/images/generations", **asked, partial_images=2))
        partial = [event for event in told if event["type"] == "image_generation.partial_image"]
        assert [(e["partial_image_index"], e["gengen"]["index"]) for e in partial] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for event in partial:
            assert torch.equal(pixels(event["b64_json"]), frames[event["gengen"]["step"]][event["gengen"]["index"]])
        assert [event["type"] for event in told[4:]] == ["image_generation.completed"] * 2

    served(test)


@pytest.mark.parametrize(
    "steps, partials, shown", [(20, 0, []), (20, 1, [10]), (20, 3, [5, 10, 15]), (2, 3, [0, 1]), (1, 1, [0])]
)
def test_which_steps_are_shown(steps: int, partials: int, shown: list[int]) -> None:
    assert partial_steps(steps, partials) == shown


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": "url"}, "response_format", "keeps no image to be fetched"),
    ({"size": "12x12"}, "size", "multiple of it up to 1024x1024"),
    ({"size": "16x8"}, "size", "draws 8x8"),
    ({"size": "2048x2048"}, "size", "up to 1024x1024"),
    ({"size": "large"}, "size", "WIDTHxHEIGHT"),
    ({"n": 17}, "n", "<= 16"),
    ({"n": 0}, "n", ">= 1"),
    ({"steps": 251}, "steps", "<= 250"),
    ({"sampler": "euler"}, "sampler", "heun, dpmpp_2m, ddim, ancestral"),
    ({"guidance": -1}, "guidance", ">= 0"),
    ({"seed": -1}, "seed", ">= 0"),
    ({"output_format": "jpeg"}, "output_format", "png"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"prompt": "zebra"}, "prompt", "no such class"),
    ({"prompt": None}, "prompt", "missing"),
    ({"prompt": "x" * 4001}, "prompt", "4000 characters"),
    ({"negative": "blurred"}, "negative", "3 classes and no texts"),
    (
        {"truncation": 0.5},
        "truncation",
        "is a unet, which takes sampler, steps, guidance, guide_from, guide_to, negative",
    ),
    ({"guide_to": 1.1}, "guide_to", "<= 1"),
    ({"model": "gan", "steps": 5}, "steps", "is a gan, which takes truncation"),
    ({"model": "vae", "guidance": 2}, "guidance", "takes no such settings"),
    ({"model": "vae", "prompt": "cat"}, "prompt", "without classes"),
    ({"model": "story"}, "model", "continues texts"),
    ({"model": "reward"}, "model", "scores answers"),
    ({"partial_images": 2}, "partial_images", "stream=true"),
    ({"partial_images": 100, "n": 2, "stream": True}, "partial_images", "more than 128"),
    ({"step": 5}, "step", "did you mean steps"),
]


def test_what_cannot_be_drawn_is_refused_by_name(served: Callable[[Test], None]) -> None:
    async def test(post: Any, application: Application) -> None:
        for asked, param, says in REFUSED:
            for streamed in ({}, {"stream": True} if "partial_images" not in asked else {}):
                body = {"model": "unet", "prompt": ""} | asked | streamed
                answer = await post("/v1/images/generations", **body)
                error = answer.json().get("error", {})
                assert (answer.status_code, error.get("param")) == (400, param), (asked, answer.text[:300])
                assert says in error["message"], (asked, error)
        assert (await post("/v1/images/generations", model="nobody", prompt="")).status_code == 404
        text = await post("/v1/completions", model="unet", prompt="a")
        assert text.status_code == 400 and "draws images: /v1/images/generations" in text.json()["error"]["message"]

    served(test)


# --- edits


def given(side: int = 8, value: int = 90) -> str:
    rows = np.arange(side * side, dtype=np.uint8).reshape(side, side) % 64 + value
    return base64.b64encode(png(rows)).decode()


def test_edits_are_those_of_the_library(served: Callable[[Test], None], image_runs: Path) -> None:
    """What is not open stays, to the bit; a mask is a word, a box or a picture."""
    generator: Any = gengen.load(image_runs / "unet")
    picture = pixels(given())
    white = np.zeros((8, 8), np.uint8)
    white[:, 4:] = 255
    masks = [
        ("left", "left"),
        ("4,0,8,8", "4,0,8,8"),
        (base64.b64encode(png(white)).decode(), torch.from_numpy(white)),
    ]
    asked = {"model": "unet", "image": given(), "n": 2, "seed": 3, "resamples": 2, **FAST}

    async def test(post: Any, application: Application) -> None:
        for sent, mask in masks:
            expected = generator.edit(picture, mask, n=2, seed=3, resamples=2, **FAST)
            found = images(await post("/gengen/v1/images/edits", **asked, mask=sent))
            assert torch.equal(found, expected)
            kept = slice(4, 8) if sent == "left" else slice(0, 4)
            assert torch.equal(found[..., kept], picture[..., kept].expand(2, -1, -1, -1))
        one = await post(
            "/gengen/v1/images/edits", model="unet", image=given(), prompt="fox", strength=0.4, seed=3, **FAST
        )
        assert torch.equal(images(one), generator.edit(picture, n=1, labels=["fox"], strength=0.4, seed=3, **FAST))
        fact = one.json()["data"][0]["gengen"]
        assert (
            fact.items()
            >= {"what": "edit", "class": "fox", "strength": 0.4, "seed": 3, "index": 0, "steps": 3}.items()
        )
        told = events(await post("/gengen/v1/images/edits", **asked, mask="left", stream=True, partial_images=1))
        assert [e["type"] for e in told] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"] * 2

    served(test)


def test_a_picture_is_carried_on_as_by_the_library(served: Callable[[Test], None], image_runs: Path) -> None:
    """And stays as it is where it was."""
    generator: Any = gengen.load(image_runs / "unet")
    picture, added = pixels(given()), {"right": 6, "top": 2}
    expected = generator.outpaint(picture, **added, n=2, labels=["dog"], seed=3, resamples=2, **FAST)
    asked = {"model": "unet", "image": given(), "prompt": "dog", "seed": 3, "resamples": 2, **FAST}

    async def test(post: Any, application: Application) -> None:
        answer = await post("/gengen/v1/images/edits", **asked, n=2, **added)
        assert torch.equal(images(answer), expected) and answer.json()["size"] == "14x10"
        assert torch.equal(images(answer)[:, :, 2:, :8], picture.expand(2, -1, -1, -1))
        fact = answer.json()["data"][1]["gengen"]
        assert fact.items() >= {"what": "outpaint", "right": 6, "top": 2, "index": 1}.items() and "left" not in fact
        refused: list[tuple[dict[str, Any], str]] = [
            ({"left": 17}, "at most 16 pixels"), ({"mask": "left", "top": 1}, "keep their size"),
            ({"partial_images": 1, "stream": True, "top": 1}, "keep their size"), ({"bottom": -1}, ">= 0"),
        ]  # fmt: skip
        for body, says in refused:
            answer = await post("/gengen/v1/images/edits", **asked, **body)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] in body and says in error["message"], answer.text

    served(test)


def test_an_outpainting_whose_client_left_ends_at_its_next_step(served: Callable[[Test], None]) -> None:
    async def test(post: Any, application: Application) -> None:
        worker: Any = application.runs["unet"].worker
        body = {"model": "unet", "image": given(), "right": 16, "steps": 250, "resamples": 50}
        running = asyncio.create_task(post("/gengen/v1/images/edits", **body))
        await until(lambda: worker.running == 1)
        (call,) = list(worker.jobs)
        worker.end(call, "cancelled")
        await until(lambda: worker.running == 0)
        running.cancel()

    served(test)


def test_what_is_no_picture_is_refused(served: Callable[[Test], None], tmp_path: Path) -> None:
    """No path and no URL is opened, and a header that promises too many pixels is believed."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(np.zeros((8, 8), np.uint8)))
    width = int(MAX_GIVEN**0.5) + 1
    bomb = base64.b64encode(png(np.zeros((width, width), np.uint8))).decode()
    cut = base64.b64encode(base64.b64decode(given(64))[:-200]).decode()
    refused = [
        ("image", str(secret)), ("image", "http://127.0.0.1:9/a.png"), ("image", f"file://{secret}"), ("image", bomb),
        ("image", base64.b64encode(b"GIF89a").decode()), ("image", cut), ("image", 5), ("image", None),
        ("mask", str(secret)),
        ("mask", bomb), ("mask", "5,5,2,2"), ("mask", given(16)),
    ]  # fmt: skip

    async def test(post: Any, application: Application) -> None:
        for key, value in refused:
            body = {"model": "unet", "image": given(), **FAST} | {key: value}
            answer = await post("/gengen/v1/images/edits", **body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, key), (
                key,
                str(value)[:60],
                answer.text,
            )
        gan = await post("/gengen/v1/images/edits", model="gan", image=given())
        assert gan.status_code == 400 and gan.json()["error"]["param"] == "model"

    served(test)


def test_only_pictures_may_be_large(served: Callable[[Test], None]) -> None:
    async def test(post: Any, application: Application) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (1100, 1100), np.uint8)
        large = base64.b64encode(png(noise)).decode()
        assert (await post("/gengen/v1/images/edits", model="unet", image=large, **FAST)).status_code == 200
        assert (await post("/v1/images/generations", model="unet", prompt=large)).status_code == 413
        assert (await post("/gengen/v1/images/edits", model="unet", image=large * 6)).status_code == 413

    served(test)


# --- the thread


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def pieces(call: Call) -> list[bytes]:
    return [piece async for some in call.stream(60) for piece in some]


def endless(steps: list[int]) -> Call:
    """A call that goes on until it is ended."""

    def work(progress: Progress) -> bytes:
        while True:
            progress.check()
            steps.append(1)

    return Call("a", work)


def test_a_draw_whose_client_left_ends_at_its_next_step(served: Callable[[Test], None]) -> None:
    """The engine is free for the next one; what waited in the queue is never begun."""

    async def test(post: Any, application: Application) -> None:
        worker: Any = application.runs["unet"].worker
        asked = {"model": "unet", "prompt": "", "n": 16, "steps": 250}
        running = [asyncio.create_task(post("/v1/images/generations", **asked)) for _ in range(2)]
        await until(lambda: worker.running == 1 and len(worker.unbegun) == 1)
        for call in list(worker.jobs):
            worker.end(call, "cancelled")
        await until(lambda: worker.running == 0)
        for task in running:
            task.cancel()
        answer = await post("/v1/images/generations", model="unet", prompt="", **FAST)
        assert answer.status_code == 200
        assert worker.outcomes["cancelled"] == 2 and worker.outcomes["done"] == 1
        assert worker.accepted == worker.outcomes.total() and not worker.jobs and not worker.turns

    served(test)


def test_every_call_ends_in_one_outcome() -> None:
    """Done, refused, failed, cancelled, cut off; and a full queue refuses at once."""

    def refuses(progress: Progress) -> bytes:
        raise ApiError(400, "no", "no")

    def fails(progress: Progress) -> bytes:
        raise ZeroDivisionError

    async def test() -> None:
        worker = CallWorker(queue=2)
        worker.start()
        try:
            for work, outcome in ((lambda p: b"1", "done"), (refuses, "error"), (fails, "error")):
                worker.submit(call := Call("a", work))
                try:
                    assert await pieces(call) == [b"1"]
                except ApiError as error:
                    assert error.status == (400 if work is refuses else 500)
                assert call.outcome == outcome
            steps: list[int] = []
            worker.submit(first := endless(steps))
            await until(lambda: bool(steps))
            waiting = [endless([]), endless([])]
            for one in waiting:
                worker.submit(one)
            with pytest.raises(ApiError) as error:
                worker.submit(endless([]))
            assert error.value.status == 429 and error.value.retry_after
            worker.end(waiting[0], "cancelled")
            worker.cut()
            for one in (first, waiting[1]):
                with pytest.raises(ApiError, match="being stopped"):
                    await pieces(one)
            await until(lambda: worker.running == 0 and not worker.commands)
            assert [call.outcome for call in (first, *waiting)] == ["drained", "cancelled", "drained"]
            assert worker.outcomes == {
                "done": 1,
                "error": 2,
                "cancelled": 1,
                "drained": 2,
                "stalled": 0,
                "deadline": 0,
            }
            assert worker.accepted == 6 and not worker.turns
        finally:
            worker.stop()
        assert not worker.thread.is_alive()

    asyncio.run(test())

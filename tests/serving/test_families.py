"""The endpoints that show how a family works, each against the formula or the library."""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gengen
from gengen.generation.image.files import to_uint8
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.sampling import next_token_probabilities
from gengen.serving.app import Application
from helpers.served import Test, events, pixels

Served = Callable[[Test], None]


# --- next


def logits_of(story: TextGenerator, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = story.model(torch.tensor([story.prompt_tokens(prompt)]))[0, -1]
    return logits


def test_the_next_token_by_the_formula(served: Served, story: TextGenerator) -> None:
    """Without controls there is one distribution, softmax of the logits, and its entropy."""
    expected = logits_of(story, "Once").double().softmax(0)

    async def test(post: Any, application: Application) -> None:
        found = (await post("/gengen/v1/next", model="story", prompt="Once", top=5)).json()
        assert [control["control"] for control in found["controls"]] == ["model"]
        entropy = -float((expected * expected.log()).sum())
        assert found["controls"][0]["entropy"] == pytest.approx(entropy, abs=1e-4)
        assert [token["id"] for token in found["tokens"]] == expected.topk(5).indices.tolist()
        for token in found["tokens"]:
            assert token["probability"] == pytest.approx({"model": float(expected[token["id"]])}, rel=1e-4)

    served(test)


def test_all_logits_of_the_next_token_bit_for_bit_after_what_was_drawn(served: Served, story: TextGenerator) -> None:
    """Tokens drawn since the prompt stand after it, whatever the prompt is given as."""
    drawn = [90, 200, 17]
    prompt = story.prompt_tokens("Once")
    with torch.no_grad():
        expected = story.model(torch.tensor([prompt + drawn]))[0, -1]

    async def test(post: Any, application: Application) -> None:
        body: dict[str, Any] = {"model": "story", "logits": True}
        found = (await post("/gengen/v1/next", **body, prompt="Once", drawn=drawn)).json()
        assert found["prompt"] == prompt + drawn
        raw = base64.b64decode(found["logits"])
        torch.testing.assert_close(torch.frombuffer(bytearray(raw), dtype=torch.float32), expected)
        again = (await post("/gengen/v1/next", **body, prompt=prompt + drawn)).json()
        assert again["logits"] == found["logits"]
        assert "logits" not in (await post("/gengen/v1/next", model="story", prompt="Once")).json()

    served(test)


def test_each_control_of_the_next_token_is_shown(served: Served, story: TextGenerator) -> None:
    """In the order in which they are applied; the last distribution is what `generate` draws from."""
    controls = {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.3}
    bias = {"101": 1.5}
    row = logits_of(story, "Once")
    row[101] += 1.5
    harder = row.clone()
    for token in set(story.tokenizer.encode("Once")):
        harder[token] = row[token] / 1.3 if row[token] > 0 else row[token] * 1.3
    drawn = next_token_probabilities(harder[None], 0.7, 6, 0.9)[0]

    async def test(post: Any, application: Application) -> None:
        found = (await post("/gengen/v1/next", model="story", prompt="Once", **controls, logit_bias=bias)).json()
        names = [control["control"] for control in found["controls"]]
        assert names == ["model", "logit_bias", "penalties", "temperature", "top_k", "top_p"]
        possible = [control["possible"] for control in found["controls"]]
        assert possible[4] == 6 and possible[5] == int((drawn > 0).sum()) <= 6
        entropy = [control["entropy"] for control in found["controls"]]
        assert entropy[3] < entropy[2] and entropy[4] < entropy[3], "sharper, then fewer"
        for token in found["tokens"]:
            assert token["probability"]["top_p"] == pytest.approx(float(drawn[token["id"]]), abs=1e-5)
            assert token["probability"]["logit_bias"] == pytest.approx(float(row.softmax(0)[token["id"]]), abs=1e-5)

    served(test)


def test_the_next_token_of_a_conversation_and_what_is_refused(served: Served) -> None:
    asked: list[tuple[dict[str, Any], int, str | None]] = [
        ({"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}, 200, None),
        ({"model": "chat", "prompt": "a", "messages": [{"role": "user", "content": "Hi"}]}, 400, "prompt"),
        ({"model": "story"}, 400, "prompt"),
        ({"model": "story", "prompt": ["a", "b"]}, 400, "prompt"),
        ({"model": "story", "prompt": "a" * 1000}, 400, "prompt"),
        ({"model": "story", "prompt": "a", "drawn": [300]}, 400, "drawn"),
        ({"model": "story", "prompt": "a", "drawn": [1] * 256}, 400, "drawn"),
        ({"model": "story", "prompt": "a", "top": 101}, 400, "top"),
        ({"model": "story", "prompt": "a", "max_tokens": 5}, 400, "max_tokens"),
        ({"model": "story", "prompt": "a", "logit_bias": {"9999": 1}}, 400, "logit_bias"),
        ({"model": "unet", "prompt": "a"}, 400, "model"),
    ]

    async def test(post: Any, application: Application) -> None:
        for body, status, param in asked:
            answer = await post("/gengen/v1/next", **body)
            assert (answer.status_code, answer.json().get("error", {}).get("param")) == (status, param), answer.text

    served(test)


# --- images


def test_a_strip_from_noise_to_an_image(served: Served, image_runs: Path) -> None:
    """Estimates are the library's frames; the first state is noise, the same for any class; the end is the image."""
    frames: list[torch.Tensor] = []
    generator: Any = gengen.load(image_runs / "unet")
    images = generator.generate(1, ["dog"], seed=4, first=2, steps=6, sampler="ddim", frames=frames)
    asked = {"model": "unet", "seed": 4, "first": 2, "steps": 6, "sampler": "ddim", "frames": 3}

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/gengen/v1/denoise", prompt="dog", **asked)).json()
        assert [step["step"] for step in answer["steps"]] == [0, 2, 4]
        for step in answer["steps"]:
            assert torch.equal(pixels(step["x_0"]), frames[step["step"]][0])
        assert torch.equal(pixels(answer["b64_json"]), images[0]) and answer["gengen"]["class"] == "dog"
        other = (await post("/gengen/v1/denoise", prompt="cat", **asked)).json()
        assert other["steps"][0]["x_t"] == answer["steps"][0]["x_t"]
        assert other["steps"][2]["x_t"] != answer["steps"][2]["x_t"]
        told = events(await post("/gengen/v1/denoise", prompt="dog", stream=True, **asked))
        assert [event["type"] for event in told] == ["denoise.step"] * 3 + ["denoise.completed"]
        assert [event["x_t"] for event in told[:3]] == [step["x_t"] for step in answer["steps"]]
        refused = await post("/gengen/v1/denoise", model="gan", prompt="")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "model"

    served(test)


def test_a_strip_says_what_it_cost(served: Served) -> None:
    """Heun's sampler calls the network twice a step, in the first and the last once; guidance doubles it."""

    async def test(post: Any, application: Application) -> None:
        for more, calls in (
            ({"sampler": "heun", "guidance": 1}, 2 * 6 - 2), ({"sampler": "heun", "guidance": 3}, 2 * (2 * 6 - 2)),
            ({"sampler": "ddim", "guidance": 1}, 6), ({"sampler": "ddim", "guidance": 3, "guide_to": 0}, 6),
        ):  # fmt: skip
            asked = {"model": "unet", "prompt": "dog", "seed": 4, "steps": 6, "frames": 1} | more
            answer = (await post("/gengen/v1/denoise", **asked)).json()
            assert answer["calls"] == calls and 0 < answer["seconds"] < 10, more
            told = events(await post("/gengen/v1/denoise", **asked, stream=True))
            assert told[-1]["calls"] == calls

    served(test)


def test_the_way_between_two_prompts(served: Served, image_runs: Path) -> None:
    """It is the library's, and its ends are the images of the prompts."""
    generator: Any = gengen.load(image_runs / "text")
    how = {"steps": 2, "sampler": "ddim", "guidance": 2.0}
    (way,) = generator.remix("a red circle", "a blue square", 1, pictures=3, seed=5, first=1, negative="a dot", **how)
    asked = {"model": "text", "prompt": "a red circle", "to": "a blue square", "pictures": 3, "negative": "a dot"}

    async def test(post: Any, application: Application) -> None:
        answer = (await post("/gengen/v1/remix", **asked, seed=5, first=1, **how)).json()["data"]
        assert torch.equal(torch.stack([pixels(row["b64_json"]) for row in answer]), way)
        assert [row["gengen"]["at"] for row in answer] == [0, 0.5, 1] and answer[0]["gengen"]["seed"] == 5
        plain = await post(
            "/v1/images/generations", model="text", prompt="a blue square", negative="a dot", seed=5, first=1, **how
        )
        assert torch.equal(pixels(plain.json()["data"][0]["b64_json"]), way[-1])
        refused = [
            ({"to": None}, "to"), ({"pictures": 1}, "pictures"), ({"pictures": 17}, "pictures"),
            ({"model": "unet"}, "prompt"), ({"model": "gan"}, "model"), ({"to": "x" * 4001}, "to"),
        ]  # fmt: skip
        for body, param in refused:
            wrong = await post("/gengen/v1/remix", **asked | body)
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param), wrong.text

    served(test)


def test_a_latent_is_decoded(served: Served, image_runs: Path) -> None:
    """Untouched it is the draw itself; a channel that is moved is that of a traversal; null leaves a channel alone."""
    generator: Any = gengen.load(image_runs / "vae")
    model, asked = generator.model, {"model": "vae", "seed": 2, "first": 1}
    moved = generator.prior([1], 2)
    moved[:, 1] = 2.5 * model.latent_std[1] + model.latent_mean[1]

    async def test(post: Any, application: Application) -> None:
        plain = (await post("/gengen/v1/latent", **asked)).json()
        assert torch.equal(pixels(plain["b64_json"]), generator.generate(1, seed=2, first=1)[0])
        one = (await post("/gengen/v1/latent", **asked, deviations=[None, 2.5])).json()
        assert torch.equal(pixels(one["b64_json"]), to_uint8(generator.decode(moved))[0])
        again = (await post("/gengen/v1/latent", **asked, deviations=plain["deviations"])).json()
        assert len(plain["deviations"]) == math.prod(plain["shape"])
        assert (pixels(again["b64_json"]).int() - pixels(plain["b64_json"]).int()).abs().max() <= 1
        for bad in ([6.1, 0], [True, 0], ["1", 0], [0, 0, 0], "1", []):
            answer = await post("/gengen/v1/latent", **asked, deviations=bad)
            assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("deviations"), bad

    served(test)


def test_a_discriminator_says_what_it_thinks(served: Served, image_runs: Path) -> None:
    """The images are those of `generate`; the logits are its own, of each image and its class."""
    generator: Any = gengen.load(image_runs / "gan")
    z = 0.8 * generator.latents([4, 5, 6], 3)
    with torch.no_grad():
        labels = torch.tensor([2, 0, 2])
        logits = generator.model.discriminator(generator.model.generator(z, labels), labels)

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "gan", "prompt": "fox, cat", "n": 3, "seed": 3, "first": 4, "truncation": 0.8}
        rows = (await post("/gengen/v1/gan", **asked)).json()["data"]
        images = generator.generate(3, ["fox, cat"], seed=3, first=4, truncation=0.8)
        assert torch.equal(torch.stack([pixels(row["b64_json"]) for row in rows]), images)
        assert [row["logit"] for row in rows] == pytest.approx(logits.tolist(), abs=1e-5)
        assert [row["gengen"]["class"] for row in rows] == ["fox", "cat", "fox"]
        refused = await post("/gengen/v1/gan", model="gan", prompt="zebra")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"

    served(test)


# --- score


def test_answers_are_scored_as_by_the_library(served: Served, image_runs: Path) -> None:
    scorer: Any = gengen.load(image_runs / "reward")
    responses = ["yes", "no, never", "maybe"]

    async def test(post: Any, application: Application) -> None:
        for ended in (True, False):
            body = {"model": "reward", "prompt": "Is it?", "responses": responses, "ended": ended}
            rows = (await post("/gengen/v1/score", **body)).json()["data"]
            asked = (["Is it?"] * 3, responses, [ended] * 3)
            assert [row["score"] for row in rows] == pytest.approx(scorer.score(*asked).tolist(), abs=1e-5)
            assert [row["raw"] for row in rows] == pytest.approx(scorer.raw(*asked).tolist(), abs=1e-5)
        said = [{"role": "user", "content": "Is it?"}]
        same = await post("/gengen/v1/score", model="reward", messages=said, responses=responses, ended=False)
        assert same.json()["data"] == rows
        refused: list[tuple[dict[str, Any], str]] = [
            ({"responses": []}, "responses"),
            ({"responses": ["a"] * 65}, "responses"),
            ({"responses": ["a" * 500]}, "responses[0]"),
            ({"responses": ["", "a"], "ended": False}, "responses[0]"),
            ({"prompt": None}, "prompt"),
            ({"model": "chat"}, "model"),
        ]
        for more, param in refused:
            answer = await post("/gengen/v1/score", **{"model": "reward", "prompt": "a", "responses": ["b"]} | more)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text

    served(test)

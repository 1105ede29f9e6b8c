"""Figures of what saves work: guesses of next tokens, and beginnings of prompts that were known."""

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gengen.generation.text.generator import TextGenerator
from gengen.serving.app import Application
from gengen.serving.worker import Worker
from helpers.served import during, in_process, served_here


def figures(text: str) -> dict[tuple[str, str], float]:
    """Samples of `story`: (name, kind) -> value."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, s.labels.get("kind", "")): s.value for s in samples if s.labels.get("model") == "story"}


def test_guesses_and_known_prompts_are_counted(runs: Path, story: TextGenerator) -> None:
    """A prompt of 150 tokens is known up to its second 64th the second time; the text that repeats itself is guessed,
    and not all of it is guessed right."""
    prompt = "ab" * 75

    async def test(post: Any, application: Application) -> None:
        asked = {"model": "story", "prompt": prompt, "max_tokens": 40, "seed": 1, "top_k": 2}
        first, second = [(await post("/v1/completions", **asked)).json() for _ in range(2)]
        assert first["choices"][0]["text"] == second["choices"][0]["text"]
        known = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        worker = application.runs["story"].worker
        assert isinstance(worker, Worker)
        speculation = worker.scheduler.speculation
        assert speculation is not None and speculation.offered > speculation.accepted
        async with in_process(application) as client:
            found = figures((await client.get("/metrics")).text)
        assert known == 128 == found["gengen_prefix_tokens_total", ""] and found["gengen_prefix_hits_total", ""] == 1
        assert found["gengen_guesses_total", "offered"] == speculation.offered > 0
        assert found["gengen_guesses_total", "accepted"] == speculation.accepted

    during(served_here(runs, guess="lookup"), test)

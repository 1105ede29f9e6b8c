"""The page of stages: answers of several runs to one prompt, and how likely each is to the others."""

from pathlib import Path

import pytest
import torch

from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from helpers.pages import Visit

pytestmark = pytest.mark.slow
HOW = {"seed": 3, "max_tokens": 10, "temperature": 1.0}


def log_probs(generator: TextGenerator, answer: list[int]) -> torch.Tensor:
    """Of each token of an answer to "Hi", (T,), by one pass of the network."""
    prompt = generator.prompt_tokens("Hi")
    with torch.no_grad():
        logits = generator.model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer]  # type: ignore[no-any-return]


def test_runs_answer_side_by_side_and_ratios_are_those_of_the_networks(visit: Visit, served_runs: Path) -> None:
    """A reward run scores each."""
    runs = {name: load_as(TextGenerator, str(served_runs / name), device="cpu") for name in ("story", "chat")}
    samples = {name: run.generate("Hi", overflow="end", **HOW)[0] for name, run in runs.items()}
    with visit("stages?run=chat&max_tokens=10&seed=3&answer=chat") as page:
        page.get_by_label("Prompt").focus()
        page.keyboard.type("Hi")
        page.keyboard.press("Control+Enter")
        page.get_by_text("2 answers in").wait_for()
        assert page.locator(".columns [role=listbox]").all_text_contents() == [s.text for s in samples.values()]
        assert page.locator(".reward").count() == 2
        for name, other in (("chat", "story"), ("story", "chat")):
            page.get_by_role("button", name="How likely").nth(list(runs).index(name)).press("Enter")
            page.get_by_role("heading", name=f"The answer of {name}").wait_for()
            titles = page.locator("section .token").evaluate_all("all => all.map((one) => parseFloat(one.title))")
            tokens = samples[name].tokens
            ratio = log_probs(runs[name], tokens) - log_probs(runs[other], tokens)
            assert titles == pytest.approx(ratio.tolist(), rel=1e-2, abs=1e-3)
        page.reload()
        page.get_by_role("heading", name="The answer of story").wait_for()

"""The page of preferences, as somebody votes on it."""

from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import Page

from gengen.data.dialogue.template import prompt_tokens
from gengen.generation.load import load_as
from gengen.generation.text.generator import TextGenerator
from gengen.serving.preferences import swapped
from helpers.pages import Visit
from helpers.served import Process

pytestmark = pytest.mark.slow
HASH = "prefer?prompts=Once&max_tokens=12&run=story&other=chat&annotator={}"
VOTERS = count()  # test_broken_pages.py votes beside the same server, by this file's test


def texts(page: Page) -> list[str]:
    return [str(page.locator(f"[aria-label='the {side} text']").text_content()) for side in ("left", "right")]


def test_votes_by_keyboard_alone_with_undo_reload_and_back(visit: Visit, play: Process, served_runs: Path) -> None:
    story, chat = (load_as(TextGenerator, str(served_runs / name), device="cpu") for name in ("story", "chat"))
    asked = prompt_tokens(chat.tokenizer, [{"role": "user", "content": "Once"}])
    voter = f"ann{next(VOTERS)}"
    with visit(HASH.format(voter)) as page:
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("h2:has-text('Pair 1')")
        first = texts(page)
        drawn = [
            run.generate([prompt], n=2, seed=1, max_tokens=12, temperature=1.0, overflow="end")[i].text
            for i, (run, prompt) in enumerate(((story, "Once"), (chat, asked)))
        ]
        assert first == (drawn[::-1] if swapped(voter, 1) else drawn)
        assert "story" not in page.locator("div.columns").inner_text()
        page.keyboard.press("1")
        page.wait_for_selector("h2:has-text('Pair 2')")
        told = page.locator("div[role=status]").inner_text()
        left, right = ("chat", "story") if swapped(voter, 1) else ("story", "chat")
        assert f"Left was by {left} (step 7" in told and f"right by {right} (step 7" in told
        second = texts(page)
        page.keyboard.press("u")
        page.wait_for_selector("h2:has-text('Pair 1')")
        assert texts(page) == first
        page.keyboard.press("2")
        page.wait_for_selector("h2:has-text('Pair 2')")
        assert texts(page) == second and "1 of yours" in page.locator("table").inner_text()
        page.reload()
        page.wait_for_selector("h2:has-text('Pair 2')")
        assert texts(page) == second
        page.keyboard.press("3")
        page.wait_for_selector("h2:has-text('Pair 3')")
        page.go_back()
        page.wait_for_selector("h2:has-text('Pair 2')")
        assert texts(page) == second and "equally good" in page.locator("div[role=status]").inner_text()
    found = play.get(f"/gengen/v1/preference?annotator={voter}").json()
    assert (found["pairs"], found["tie"], found["next"]) == (1, 1, 3)
    play.until(play.quiet)


def test_prompts_that_were_held_out_from_the_run(visit: Visit, play: Process) -> None:
    """By keyboard: in place of the written ones, in turn; reload and back keep which count."""
    held = play.post("../gengen/v1/prompts", model="story", n=10).json()["prompts"]
    with visit(HASH.format("holder")) as page:
        page.get_by_role("button", name="Prompts of the run").press("Enter")
        page.get_by_text("that were held out from story").wait_for()
        assert page.locator("ol li").all_inner_texts() == held
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("h2:has-text('Pair 1')")
        assert page.get_by_label("the prompt", exact=True).text_content() == held[0]
        page.keyboard.press("3")
        page.wait_for_selector("h2:has-text('Pair 2')")
        assert page.get_by_label("the prompt", exact=True).text_content() == held[1 % len(held)]
        page.reload()
        page.wait_for_selector("h2:has-text('Pair 2')")
        assert page.get_by_label("the prompt", exact=True).text_content() == held[1 % len(held)]
        page.get_by_role("button", name="Write them myself").press("Enter")
        assert page.get_by_label("Prompts, one a line").input_value() == "Once"
        page.go_back()
        page.get_by_text("that were held out from story").wait_for()


def test_keys_that_are_typed_into_a_field_are_no_votes(visit: Visit, play: Process) -> None:
    with visit(HASH.format("typist")) as page:
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("h2:has-text('Pair 1')")
        page.get_by_label("Prompts, one a line").press_sequentially("1 2 3 4 s u")
        page.wait_for_timeout(300)
    assert play.get("/gengen/v1/preference?annotator=typist").json()["next"] == 1

"""The page of texts: what it shows is what the library draws, and its odds are the library's."""

from typing import Any

import pytest
import torch
from playwright.sync_api import Page

from gengen.config.commands import DecodingSettings
from gengen.data.text.tokenizer import TextTokenizer
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.row import Request, Row
from gengen.generation.text.stages import stages
from helpers.pages import Visit
from helpers.served import Process

pytestmark = pytest.mark.slow
TEXTS = "[role=listbox]"
ODDS = """async (cases) => {
  const odds = await import("/play/odds.js");
  const of = ({ logits, settings, there }) => odds.stages(new Float32Array(logits), settings, there);
  return cases.map((one) => of(one).map(([name, p]) => [name, [...p]]));
}"""


def texts_of(page: Page) -> list[str]:
    """The texts on the page, once the main act is done."""
    page.get_by_text(" tokens in ").wait_for()
    return page.locator(TEXTS).evaluate_all("all => all.map((one) => one.textContent)")  # type: ignore[no-any-return]


def press_tab_until(page: Page, matches: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", matches):
            return
    raise AssertionError(f"no way to {matches} by the Tab key")


def test_texts_of_every_seed_and_both_controls_are_the_librarys(visit: Visit, story: TextGenerator) -> None:
    """Half characters and all: random weights draw little else. The keyboard alone is enough."""
    with visit("text?run=story&temperature=0.9&top_p=0.95&max_tokens=24&seed=3&n=2&seeds=2&b_temperature=0.4") as page:
        press_tab_until(page, "textarea")
        page.keyboard.type("Zoë — 東")
        page.keyboard.press("Control+Enter")
        found = texts_of(page)
        expected = []
        for seed in (3, 4):
            for temperature in (0.9, 0.4):
                how: Any = {"n": 2, "seed": seed, "max_tokens": 24, "top_p": 0.95, "overflow": "end"}
                samples = story.generate("Zoë — 東", temperature=temperature, **how)
                expected += [sample.text for sample in samples]
        assert found == expected and any("\ufffd" in text for text in found)
        page.reload()
        assert texts_of(page) == expected


def test_the_back_button_returns_to_the_text_before(visit: Visit) -> None:
    with visit("text?run=story&prompt=Once&max_tokens=12&seed=1&shown=1") as page:
        first = texts_of(page)
        page.get_by_label("Seed", exact=True).fill("2")
        page.wait_for_timeout(300)  # longer than the address takes to follow what is typed
        page.keyboard.press("Control+Enter")
        page.wait_for_url("**seed=2**")
        page.wait_for_function("(one) => document.querySelector('[role=listbox]')?.textContent !== one", arg=first[0])
        assert texts_of(page) != first
        page.go_back()
        page.wait_for_url("**seed=1**")
        page.wait_for_function("(one) => document.querySelector('[role=listbox]')?.textContent === one", arg=first[0])


def test_odds_of_the_page_are_the_librarys_after_each_control(visit: Visit) -> None:
    """Ties too: among equal logits, controls keep the first."""
    draw, cases, expected = torch.Generator().manual_seed(0), [], []
    tokenizer = TextTokenizer.byte()
    for i in range(120):
        tied = i % 3 == 0
        logits = torch.randint(-3, 3, (257,), generator=draw).float() if tied else torch.randn(257, generator=draw) * 4
        if i % 5 == 0:
            logits[torch.randint(0, 257, (60,), generator=draw)] = float("-inf")
        u = torch.rand(6, generator=draw).tolist()
        settings: dict[str, Any] = {"temperature": [0.0, 1.0, 2 * u[0]][i % 3 if not tied else i // 3 % 3]}
        settings |= {"top_k": 1 + int(257 * u[1] ** 2)} if i % 2 else {}
        settings |= {"top_p": round(max(u[2], 0.01), 2)} if i % 4 < 2 else {}
        settings |= {"min_p": u[3] ** 3} if i % 7 < 3 else {}
        settings |= {"repetition_penalty": 1 + u[4]} if i % 8 < 3 else {}
        there = torch.randint(1, 257, (40,), generator=draw).tolist()
        row = Row(Request([0, *there], DecodingSettings(max_tokens=1, **settings)), tokenizer, torch.device("cpu"))
        expected.append(stages(row, logits))
        cases.append({"logits": logits.tolist(), "settings": settings, "there": there})
    with visit("text") as page:
        found = page.evaluate(ODDS, cases)
    for case, of_page, of_library in zip(cases, found, expected, strict=True):
        assert [name for name, _ in of_page] == list(of_library), case["settings"]
        for (name, p), q in zip(of_page, of_library.values(), strict=True):
            assert float((torch.tensor(p) - q).abs().max()) < 1e-6, (name, case)


def test_a_token_shows_what_else_could_stand_there_and_a_slider_needs_no_request(
    visit: Visit, play: Process, story: TextGenerator
) -> None:
    """Then a text goes on from another token, with the same seed."""
    with visit("text?run=story&prompt=Once&max_tokens=8&seed=5&shown=1") as page:
        texts_of(page)
        sample = story.generate("Once", max_tokens=8, seed=5, temperature=1.0, overflow="end")[0]
        press_tab_until(page, "[role=option]")
        for key in ("ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        page.locator(".odds tbody tr").nth(19).wait_for()
        before = story.prompt_tokens("Once") + sample.tokens[:2]
        with torch.no_grad():
            logits: torch.Tensor = story.model(torch.tensor([before]))[0, -1]
        likeliest = logits.topk(20).indices.tolist()
        answer = play.post("../gengen/v1/next", model="story", prompt="Once", drawn=sample.tokens[:2], top=20).json()
        assert [token["id"] for token in answer["tokens"]] == likeliest

        def shares() -> list[float]:
            cells = page.locator(".odds tbody tr td:nth-child(3)").all_inner_texts()
            return [float(cell.removesuffix(" %")) / 100 for cell in cells]

        assert shares() == pytest.approx(logits.softmax(0)[likeliest].tolist(), rel=5e-3)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_label("Temperature").first.fill("0.5")
        assert shares() == pytest.approx((logits / 0.5).softmax(0)[likeliest].tolist(), rel=5e-3)
        assert asked == []
        page.get_by_label("Temperature").first.fill("1")
        page.locator(".odds button").nth(3).click()
        page.get_by_text("Goes on from here").wait_for()
        other = story.generate([[*before, likeliest[3]]], max_tokens=8, seed=5, temperature=1.0, overflow="end")[0]
        assert texts_of(page) == [other.text]
        page.go_back()
        page.wait_for_function(
            "(one) => document.querySelector('[role=listbox]')?.textContent === one", arg=sample.text
        )


def test_stop_frees_the_rows_at_once_and_keeps_what_was_drawn(visit: Visit, play: Process) -> None:
    with visit("text?run=story&prompt=Once&max_tokens=240&n=8") as page:
        page.keyboard.press("Control+Enter")
        page.locator(".token").nth(20).wait_for()
        assert play.figure("gengen_rows_running") > 0
        drawn = play.figure("gengen_tokens_total")
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped").wait_for()
        play.until(play.quiet)
        assert page.locator(".token").count() > 20
        assert play.figure("gengen_tokens_total") - drawn < 8 * 240 / 2

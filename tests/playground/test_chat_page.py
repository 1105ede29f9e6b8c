"""The page of conversations: its answers are the library's, forced ones too; markers are seen; rewards are said."""

import json

import pytest
from playwright.sync_api import Page

from gengen.data.dialogue.template import prompt_tokens
from gengen.generation.text.generator import TextGenerator
from gengen.generation.text.grammar import GrammarSpec, compile_grammar
from helpers.pages import Visit
from helpers.served import Process

pytestmark = pytest.mark.slow
WHERE = "chat?run=chat&system=Be%20kind&max_tokens=12&seed=4&n=2&"
ASKED = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi <|end|>"}]


def answers_of(page: Page) -> list[str]:
    page.get_by_text(" answers in ").wait_for()
    return page.locator(".answer").all_text_contents()


def drawn_by(chat: TextGenerator, messages: list[dict[str, str]]) -> list[str]:
    prompt = prompt_tokens(chat.tokenizer, messages)
    return [s.text for s in chat.generate([prompt], n=2, seed=4, max_tokens=12, temperature=1.0, overflow="end")]


def test_a_conversation_goes_on_with_an_answer(visit: Visit, play: Process, chat: TextGenerator) -> None:
    """Markers stand out, and what only looks like one is text; each answer has the reward run's score."""
    with visit(WHERE) as page:
        page.get_by_label("You say").focus()
        page.keyboard.type(ASKED[1]["content"])
        page.keyboard.press("Control+Enter")
        answers = answers_of(page)
        assert answers == drawn_by(chat, ASKED)
        markers = page.locator(".special").all_text_contents()
        assert markers == ["<|endoftext|>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
        scored = play.post("../gengen/v1/score", model="reward", messages=ASKED, responses=answers, ended=False).json()
        best = max(range(2), key=lambda i: scored["data"][i]["score"])
        assert "the best" in page.locator(".reward").nth(best).inner_text()
        page.reload()
        assert answers_of(page) == answers
        page.get_by_role("button", name="Go on with this").nth(1).press("Enter")
        page.keyboard.type("And?")
        page.keyboard.press("Control+Enter")
        further = [{"role": "assistant", "content": answers[1]}, {"role": "user", "content": "And?"}]
        assert answers_of(page) == drawn_by(chat, ASKED + further)


def allowed_in(chat: TextGenerator, answer: str) -> list[int]:
    """How many tokens the page's first schema lets come next, at each step of an answer of single bytes."""
    animal = {"name": {"enum": ["cat", "dog", "bird"]}, "tame": {"type": "boolean"}}
    schema = {"type": "object", "properties": animal, "required": [*animal], "additionalProperties": False}
    constraint = compile_grammar(GrammarSpec(json_schema=schema), chat.tokenizer).constraint()
    found = []
    for token in chat.tokenizer.encode(answer):
        found.append(int(constraint.allowed().sum()))
        constraint.add(token)
    return found


def test_answers_obey_a_schema_and_call_a_tool(visit: Visit, chat: TextGenerator) -> None:
    with visit(WHERE + "say=Hi&form=schema") as page:
        page.get_by_label("Tokens").fill("60")
        page.keyboard.press("Control+Enter")
        answers = answers_of(page)
        assert all(set(json.loads(answer)) == {"name", "tame"} for answer in answers)
        charts = page.locator(".masked")
        assert charts.count() == 2
        for answer, chart in zip(answers, charts.all(), strict=True):
            allowed = allowed_in(chat, answer)
            said, line = chart.inner_text(), chart.locator("polyline").get_attribute("points") or ""
            assert f"{min(allowed)} to {max(allowed)} of {chat.tokenizer.vocab_size} tokens" in said
            assert f"At {allowed.count(1)} of {len(allowed)} steps" in said and len(line.split()) == len(allowed)
        page.get_by_label("The answer is").select_option("tool")
        page.keyboard.press("Control+Enter")
        page.get_by_text("feed(").first.wait_for()
        assert all(answer.startswith('feed({"animal":') for answer in answers_of(page))

"""Whatever a visitor, a model, or a file says: the pages show it as text, and nothing of it runs."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, Route
from test_run_files import write_files

from helpers.hostile import HOSTILE, in_utf8
from helpers.pages import PAGES, Visit

pytestmark = pytest.mark.slow
MADE = (
    "script:not([src^='/play/']), iframe, object, base, meta[http-equiv], img[src='x'], style, "
    "link:not([href^='/play/'], [rel=icon])"
)


def unharmed(page: Page) -> None:
    """Nothing ran, and nothing was made of a text."""
    assert page.evaluate("window.struck") is None
    assert page.locator(MADE).count() == 0, page.locator(MADE).first.evaluate("element => element.outerHTML")


def watched(page: Page) -> list[str]:
    """What must not happen: dialogs, and requests that a text asks for."""
    found: list[str] = []
    page.on("dialog", lambda dialog: (found.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: found.append(request.url) if "struck" in request.url else None)
    return found


def test_there_are_sixty_and_each_is_another() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 60


@pytest.mark.parametrize("name", PAGES)
def test_in_the_address(visit: Visit, name: str) -> None:
    """As each of the values that pages read, in turn; a field that shows the prompt shows it whole."""
    texts = [text for text in HOSTILE if in_utf8(text)]
    with visit(name, refused=True) as page:  # such as a class that is called so
        found = watched(page)
        for text in texts:
            given = quote(text)
            page.evaluate(
                "hash => { location.hash = hash }", f"{name}?prompt={given}&system={given}&run={given}&runs={given}"
            )
            page.wait_for_function(
                "() => document.querySelector('main h1') && !document.querySelector('main h1').dataset.seen"
            )
            page.evaluate("document.querySelector('main h1').dataset.seen = '1'")
            for field in page.locator("textarea").all():
                if page.evaluate("area => area.labels[0]?.textContent", field.element_handle()) == "Prompt":
                    assert field.input_value() == text.replace("\r\n", "\n").replace("\r", "\n")
            unharmed(page)
        assert not found


def test_as_what_a_model_writes_and_what_a_run_is_called(visit: Visit) -> None:
    """The server's answers are made up, so that they hold what no server of ours would say: half characters too."""
    about = {
        "family": "gpt",
        "kind": "text",
        "stage": "pretrain",
        "step": 1,
        "context": 64,
        "chat": False,
        "exact": True,
    }

    def answer(route: Route, tree: Any, events: bool = False) -> None:
        body = f"data: {json.dumps(tree)}\n\ndata: [DONE]\n\n" if events else json.dumps(tree)
        route.fulfill(status=200, content_type="text/event-stream" if events else "application/json", body=body)

    with visit("run") as page:
        found, said = watched(page), {"text": ""}

        def pieces(route: Route) -> None:
            text = said["text"]
            logprobs = {"tokens": [text], "token_ids": [1], "token_logprobs": [-1.0], "text_offset": [0]}
            answer(
                route, {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}]}, True
            )

        def models(route: Route) -> None:
            answer(route, {"data": [{"id": said["text"], "gengen": about | {"stage": said["text"]}}]})

        page.route("**/v1/completions", pieces)
        page.route("**/v1/models", models)
        for i, text in enumerate(HOSTILE):
            said["text"] = text
            page.evaluate("hash => { location.hash = hash }", f"text?seed={i}")
            page.wait_for_function("t => document.querySelector('select option')?.value === t", arg=text)
            page.keyboard.press("Control+Enter")
            page.wait_for_function("t => document.querySelector('.tokens')?.textContent === t", arg=text)
            unharmed(page)
        assert not found


def test_as_names_and_contents_of_files(visit: Visit, served_runs: Path) -> None:
    """Of runs, columns, samples: all that a file system and a CSV can hold."""
    named = [t for t in HOSTILE if in_utf8(t) and not set(t) & set("/\0") and len(t.encode()) < 200]
    for text in named:
        (served_runs / text / "samples").mkdir(parents=True, exist_ok=True)
        (served_runs / text / "config.json").write_text(json.dumps({"model": {"name": text}}))
        os.utime(served_runs / text / "config.json", (1, 1))
    run = write_files(served_runs / "hostile")
    columns = [
        t.replace('"', '""')
        for t in HOSTILE
        if in_utf8(t) and not set(t) & set("\r\n\0\x85\u2028\u2029") and len(t) < 80
    ]
    head = ",".join(["step", *(f'"{column}"' for column in columns)])
    (run / "metrics.csv").write_text(head + "\n" + ",".join(["1"] * (len(columns) + 1)) + "\n")
    contents = [text for text in HOSTILE if in_utf8(text)]
    for i, text in enumerate(contents[-8:]):
        (run / f"samples/step-{i:09d}.txt").write_text(text, newline="")
    with visit("run?runs=hostile") as page:
        found = watched(page)
        page.wait_for_selector("h3:has-text('hostile: 8 of 8 samples')")
        boxes = page.evaluate("[...document.querySelectorAll('input[type=checkbox]')].map((box) => box.value)")
        assert set(named) <= set(boxes)
        charts = page.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].map((svg) => svg.getAttribute('aria-label'))"
        )
        assert {column.replace('""', '"') for column in columns} <= set(charts)
        shown = page.evaluate("[...document.querySelectorAll('.strip .words pre')].map((pre) => pre.textContent)")
        assert shown == contents[-8:]
        for i, text in enumerate(contents[-8:]):  # the slider's, too
            page.get_by_label("Step of training").fill(str(i))
            page.wait_for_function("t => document.querySelector('.scrubbed pre')?.textContent === t", arg=text)
        unharmed(page)
        assert not found

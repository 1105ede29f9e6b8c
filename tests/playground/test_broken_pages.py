"""Tests of pages that notice: for each page, one line of it is broken on its way to the browser, and a test that holds
of the page as it is must fail.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import test_autoencoder_page
import test_chat_page
import test_copied_lines
import test_diffusion_page
import test_edit_page
import test_gan_page
import test_hostile_texts
import test_prefer_page
import test_run_page
import test_stages_page
import test_text_page
from playwright.sync_api import Error, Page, Route

from gengen.serving.playground import WEB
from helpers.pages import Visit

pytestmark = pytest.mark.slow
PATIENCE_MS = 3000
written = test_run_page.written  # a fixture of that file


@dataclass(frozen=True)
class Bug:
    """line: what of a file becomes `broken`. noticed_by: a test; given: arguments of it that are no fixtures."""

    file: str
    line: str
    broken: str
    noticed_by: Callable[..., None]
    given: tuple[tuple[str, Any], ...] = ()


BUGS = {
    "odds: the temperature is left out": Bug(
        "odds.js", "f(logit - most) / f(Math.max(temperature, 1e-30))", "f(logit - most)",
        test_text_page.test_odds_of_the_page_are_the_librarys_after_each_control,
    ),
    "text: all texts are drawn from one seed": Bug(
        "pages/text.js", "(_, i) => first + i);", "(_, i) => first);",
        test_text_page.test_texts_of_every_seed_and_both_controls_are_the_librarys,
    ),
    "stop: the button begins anew": Bug(
        "act.js", "(running ? running.abort() : run())", "run()",
        test_text_page.test_stop_frees_the_rows_at_once_and_keeps_what_was_drawn,
    ),
    "back: the address is replaced": Bug(
        "state.js", 'history.pushState(null, "", this.hash)', 'history.replaceState(null, "", this.hash)',
        test_text_page.test_the_back_button_returns_to_the_text_before,
    ),
    "hostile text: a token is markup": Bug(
        "tokens.js", "element.textContent = text;", "element.innerHTML = text;",
        test_hostile_texts.test_as_what_a_model_writes_and_what_a_run_is_called,
    ),
    "chat: the worst answer is called the best": Bug(
        "rewards.js", "given[i] === high", "given[i] === low",
        test_chat_page.test_a_conversation_goes_on_with_an_answer,
    ),
    "stages: ratios upside down": Bug(
        "pages/stages.js", "logprob - theirs[i]", "theirs[i] - logprob",
        test_stages_page.test_runs_answer_side_by_side_and_ratios_are_those_of_the_networks,
    ),
    "denoise strip: states in place of estimates": Bug(
        "strip.js", "small(frame.x_0, ", "small(frame.x_t, ",
        test_diffusion_page.test_a_strip_is_drawn_by_keyboard_alone_and_is_the_library_s,
    ),
    "edit: a mask inside out": Bug(
        "mask.js", 'open[i] ? "#fff" : "#000"', 'open[i] ? "#000" : "#fff"',
        test_edit_page.test_a_part_is_drawn_anew_by_keyboard_alone,
    ),
    "latent walk: between the wrong draws": Bug(
        "pages/autoencoder.js", "first: 2 * first, to: 2 * first + 1", "first, to: first + 1",
        test_autoencoder_page.test_a_path_and_a_map_are_the_library_s,
    ),
    "gan: each request begins with the first class": Bug(
        "pages/gan.js", "String((first + i) % classes.length)", "String(i)",
        test_gan_page.test_draws_and_a_walk_are_the_library_s,
    ),
    "ideas: a step is left out": Bug(
        "pages/ideas.js", "draw(20)", "draw(19)",
        test_gan_page.test_the_ideas_are_shown_on_one_s_own_runs,
    ),
    "run: new rows are left out": Bug(
        "curve.js", "[...before, ...values", "[...before, ...[].concat(before.length ? [] : values)",
        test_run_page.test_a_curve_grows_as_its_file_does,
    ),
    "prefer: a tie is written as both bad": Bug(
        "pages/prefer.js", '3: "tie"', '3: "bad"',
        test_prefer_page.test_votes_by_keyboard_alone_with_undo_reload_and_back,
    ),
    "copied lines: of another seed": Bug(
        "copy.js", "JSON.stringify(body)", 'JSON.stringify(body).replace(/"seed":2/, "\\"seed\\":1")',
        test_copied_lines.test_each_line_makes_what_the_page_shows, (("name", "text"),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_a_broken_page_is_noticed(request: pytest.FixtureRequest, visit: Visit, name: str) -> None:
    bug = BUGS[name]
    sent: list[str] = []
    thrown: list[Exception] = []
    source = (WEB / bug.file).read_text("utf8")
    assert source.count(bug.line) == 1, "this line is no longer there: break another"

    def send(route: Route) -> None:
        sent.append(route.request.url)
        route.fulfill(response=route.fetch(), body=source.replace(bug.line, bug.broken))

    def broken(page: Page) -> None:
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: thrown.append(error))
        page.route(f"**/play/{bug.file}", send)

    wanted = inspect.signature(bug.noticed_by).parameters.keys() - {"visit"} - dict(bug.given).keys()
    fixtures = {fixture: request.getfixturevalue(fixture) for fixture in wanted}
    with pytest.raises((AssertionError, Error)):
        bug.noticed_by(visit=partial(visit, before=broken), **fixtures, **dict(bug.given))
    assert sent and not thrown, "the page must run, and be wrong"

"""What holds for every page: nothing foreign, no error, a keyboard and a narrow screen are enough, text stays text."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

import gengen.serving.playground
from gengen.config.serve import ServeConfig
from gengen.errors import UserError
from helpers.pages import DESK, PAGES, PHONE, Visit
from helpers.served import in_process, served_here

WEB = gengen.serving.playground.WEB
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|createContextualFragment|document\.write|\beval\(|new Function"
    r"|https?://(?!www\.w3\.org/2000/svg)"
)


def test_files_are_sent_with_their_type_and_policy_and_no_other_path_is(served_runs: Path) -> None:
    async def inside() -> None:
        async with in_process(served_here(served_runs, playground=True)) as client:
            await ask(client)

    async def ask(client: httpx.AsyncClient) -> None:
        first = await client.get("/")
        assert first.headers["content-type"] == "text/html; charset=utf-8"
        policy = first.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        for path in sorted(WEB.rglob("*.*")):
            answer = await client.get(f"/play/{path.relative_to(WEB).as_posix()}")
            assert answer.content == path.read_bytes() and answer.headers["content-security-policy"] == policy
        for name in ("../playground.py", "..%2fplayground.py", "%2e%2e/app.py", "pages", "/etc/passwd", "pages/", ""):
            assert (await client.get(f"/play/{name}")).status_code == 404, name

    asyncio.run(inside())


def test_pages_are_served_only_where_they_are_asked_for(served_runs: Path) -> None:
    async def inside() -> int:
        async with in_process(served_here(served_runs)) as client:
            return (await client.get("/")).status_code

    assert asyncio.run(inside()) == 404
    with pytest.raises(UserError, match="playground"):
        ServeConfig(runs=["a"], playground=True, api_key_env="KEY").check()


def test_all_pages_weigh_less_than_200_kB_and_make_no_markup_of_text() -> None:
    files = [path for path in WEB.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 200_000
    for path in files:
        forbidden = FORBIDDEN.search(path.read_text("utf8"))
        assert not forbidden, (path.name, forbidden)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_page_can_be_read_by_everyone(visit: Visit, name: str, size: tuple[int, int], dark: bool) -> None:
    with visit(name, size, dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the screen"
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious]

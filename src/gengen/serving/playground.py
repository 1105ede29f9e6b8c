"""The pages of the playground: files of this package, read once, and sent with rules for the browser that shows them.

The pages are static and know the server by its endpoints alone.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gengen.serving.protocol import ApiError

WEB = Path(__file__).parent / "web"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere, and no script that is written into a page runs."""


class Pages:
    """The files, by their names: no path of a request is ever opened."""

    def __init__(self) -> None:
        paths = [path for path in sorted(WEB.rglob("*")) if path.suffix in TYPES]
        self.files = {path.relative_to(WEB).as_posix(): path.read_bytes() for path in paths}
        self.routes = [
            Route("/", self.index, methods=["GET"]),
            Route("/play/{name:path}", self.file, methods=["GET"]),
        ]

    async def index(self, http: Request) -> Response:
        return self.answer("index.html")

    async def file(self, http: Request) -> Response:
        return self.answer(http.path_params["name"])

    def answer(self, name: str) -> Response:
        if name not in self.files:
            raise ApiError(404, f"no page is called {name[:80]!r}", "not_found")
        kind = f"{TYPES[Path(name).suffix]}; charset=utf-8"
        headers = {"content-type": kind, "content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(self.files[name], headers=headers)

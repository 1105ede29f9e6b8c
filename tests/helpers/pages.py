"""How tests look at the playground."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import Page

from gengen.serving.playground import WEB

DESK, PHONE = (1100, 800), (360, 740)  # CSS pixels
PAGES = [path.stem for path in sorted((WEB / "pages").glob("*.js"))]
Visit = Callable[..., AbstractContextManager[Page]]
"""A page by its hash, such as "text?prompt=Once": visit(hash, size=DESK, dark=False, refused=False, before=None).
Whatever the page is used for, it fails where the console shows an error or something foreign is asked for. refused:
the server may answer 400, which a browser calls an error. before: called with the page before it goes anywhere."""

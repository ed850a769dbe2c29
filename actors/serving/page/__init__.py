"""The page at `/`: ask the model in a browser. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from ....pipelines.layout import STYLE


@cache
def page() -> tuple[str, dict[str, str]]:
    """The page, and the headers that hold its browser to it: nothing else runs in it or is asked by it."""
    parts = {name: files(__name__).joinpath(name).read_text("utf-8") for name in _PARTS}
    style, script = STYLE + parts["page.css"], parts["page.js"]
    html = parts["page.html"].replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data: blob:; media-src blob:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    )
    return html, {"content-security-policy": policy, "x-content-type-options": "nosniff"}


_PARTS = ("page.html", "page.css", "page.js")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

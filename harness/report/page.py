"""The file of a report: data, style and script put into one page; nothing of the data can end the script it stands in."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

SCRIPTS = ("tables.js", "pictures.js", "page.js")  # one script, in this order


def page(content: dict[str, Any]) -> str:
    """The whole HTML document. content: of `content.gather`. Raises `ValueError` for NaN, which JSON cannot say."""
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # `</script>` and `<!--` inside a text would end or change the element; an escaped `<` means the same to JSON.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    script = "".join(map(_asset, SCRIPTS))
    text = _asset("page.html")
    for place, part in (("/*STYLE*/", _asset("page.css")), ("/*SCRIPT*/", script), ("/*DATA*/", data)):
        before, after = text.split(place)
        text = before + part + after
    return text


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

"""Texts of csv files, as a spreadsheet may open them.

A spreadsheet runs a field that starts like a formula, quoted or not: names of files, categories and methods could call programs on
the reader's machine. Such a text gets an apostrophe in front, which spreadsheets take for "this is text". A carriage return, which
Python before 3.13 does not quote, would end the line: it becomes a space. JSON has the text itself.
"""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # the wide ones count in East Asian editions


def as_text(text: str) -> str:
    """The text, with an apostrophe in front where a spreadsheet would run it.

    >>> as_text("=cmd()"), as_text("nut")
    ("'=cmd()", 'nut')
    """
    text = text.replace("\r", " ")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text

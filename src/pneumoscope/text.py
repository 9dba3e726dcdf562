"""Text for messages: counts, and text from outside such as names of files and DICOM tags, made fit to show."""

from __future__ import annotations

import os
from collections.abc import Sequence


def printable(text: str) -> str:
    """Replace every character that would control a terminal; line breaks stay."""
    return "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)


def printable_line(text: str) -> str:
    """Replace every character that would control a terminal or break the line."""
    return printable(text).replace("\n", "\N{REPLACEMENT CHARACTER}")


def to_line(text: str) -> str:
    """Leave out every character that would control a terminal or break the line, and spaces at the ends."""
    return "".join(filter(str.isprintable, text)).strip()


def is_utf8(text: str) -> bool:
    """Whether a table or report could contain this name."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def escape(text: str) -> str:
    r"""Replace what is not valid UTF-8 in a name of a file, which no table could hold, by its bytes, such as `\xff`."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no name of a file has such characters
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, length: int, *, middle: bool = False) -> str:
    """Cut a text to `length` characters; an ellipsis marks the cut, at the end or in the middle."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2 if middle else 0
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def tell_apart(paths: Sequence[str]) -> list[str]:
    """The ends of paths with `/` that tell them apart: their names, else with as many folders as it takes."""
    parts = [path.split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=0)):
        ends = ["/".join(each[-length:]) for each in parts]
        if len(set(ends)) == len(set(paths)):
            return ends
    return list(paths)


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural, such as `1 image` or `2,000 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def were(number: int, noun: str) -> str:
    """The subject and verb of a sentence such as `1 image was left out` or `2 images were left out`."""
    return f"{counted(number, noun)} {'was' if number == 1 else 'were'}"

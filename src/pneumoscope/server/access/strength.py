"""How hard a token is to guess, and random ones."""

from __future__ import annotations

import math
import re
import secrets

from pneumoscope.errors import UsageError

LEAST = 16  # characters
_BITS = 56.0  # below it, a token counts as weak
_MOST = 200  # characters looked at
_HOW = "To make a good one: openssl rand -hex 32, `pneumoscope tokens add`, or `pneumoscope serve --make-token`."
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "azertyuiop", "1234567890")
_WORDS = re.compile(
    "pneumoscope|pneumonia|radiology|hospital|password|passwort|changeme|example|default|welcome|letmein|service|"
    "secret|access|token|admin|xray|test|user|root|key|api"
)
_LETTERS = re.compile(r"[a-z]{4,}|[A-Z][a-z]{3,}|[A-Z]{4,}")
_PHRASE = re.compile(
    r"(?:[A-Za-z][a-z]*|[0-9]+)(?:[-_.](?:[A-Za-z][a-z]*|[0-9]+))+[!?.]?"
)  # words with hyphens between
_VOWELS = 0.25  # share from which letters look like words
_OF_TEXT = 2.0  # bits for each letter of a text (Shannon 1951 estimates 1 to 1.5 for long texts)
_OF_STEP = 0.5  # bits for each character that follows from the ones before


def make_token() -> str:
    """Make a random token of 256 bits."""
    return secrets.token_hex(32)


def check_token(token: str, parameter: str | None = None) -> None:
    """Refuse a token that does not fit a header, or that is easily guessed.

    Raises:
        UsageError: says why, and how to make a better one.
    """
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(f"The token may hold only ASCII characters, no spaces. {_HOW}", parameter)
    if len(token) < LEAST:
        raise UsageError(f"The token is shorter than {LEAST} characters and could be guessed. {_HOW}", parameter)
    if (bits := estimate_bits(token)) < _BITS:
        raise UsageError(
            f"The token could be guessed: it repeats itself, or consists of words or sequences (about {bits:.0f} bits; "
            f"at least {_BITS:.0f} are needed). {_HOW}",
            parameter,
        )


def estimate_bits(token: str) -> float:
    """Estimate how many bits of chance a token holds; for tokens made by hand this is rough, and rather too low."""
    text = _unrepeat(token[:_MOST])
    pool = _count_pool(text)
    each = math.log2(min(pool, 2 * len(set(text)))) if text else 0.0
    costs = [each] * len(text)
    if _PHRASE.fullmatch(token):
        costs = [min(each, _OF_TEXT if letter.isalpha() else 3.3 if letter.isdigit() else _OF_STEP) for letter in text]
    for found in _LETTERS.finditer(text):
        letters = found[0].lower()
        if sum(letter in "aeiou" for letter in letters) >= _VOWELS * len(letters) and not set(letters) <= set("abcdef"):
            costs[found.start() : found.end()] = [min(each, _OF_TEXT)] * len(letters)
    for found in _WORDS.finditer(text.lower()):
        costs[found.start() : found.end()] = [_OF_STEP] * len(found[0])
    for place in range(2, len(text)):
        if _follows(text[place - 2 : place + 1].lower()):
            costs[place] = min(costs[place], _OF_STEP)
    return sum(costs)


def _unrepeat(text: str) -> str:
    """Leave out what has occurred before: parts of four or more characters."""
    kept, place = "", 0
    while place < len(text):
        length = next(
            (n for n in range(len(text) - place, 3, -1) if text[place : place + n] in text[: place + n - 1]), 0
        )
        kept += "" if length else text[place]
        place += length or 1
    return kept


def _count_pool(text: str) -> int:
    if re.fullmatch("[0-9a-f]*|[0-9A-F]*", text):
        return 16 if re.search("[a-fA-F]", text) else 10
    classes = ((10, "[0-9]"), (26, "[a-z]"), (26, "[A-Z]"), (33, "[^0-9A-Za-z]"))
    return sum(size for size, pattern in classes if re.search(pattern, text))


def _follows(three: str) -> bool:
    """Whether three characters continue each other: `abc`, `321`, `aaa`, `wer`."""
    first, second, third = map(ord, three)
    row = any(three in row or three in row[::-1] for row in _ROWS)
    return row or (second - first == third - second and abs(second - first) <= 1)

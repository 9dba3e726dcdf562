"""Rules that say which images the node answers, and where their results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from annotated_types import Ge

from pneumoscope.images.dicom import Tags

Age = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Rule:
    """The conditions under which a rule fits an image; one that is empty or None is not checked.

    Texts may have the wildcards `*` and `?`, and case does not matter. An image without a modality, body part or view
    fits only an empty text (`""`) there, and an image of unknown age fits no age limit.

    Attributes:
        calling: AE titles of the senders; `STOW` for images that came over HTTP.
        modality: such as CR or DX.
        body_part: such as CHEST.
        view: such as PA, AP or LL.
        age_from: in years.
        age_below: in years.
        answer: whether images that fit are answered.
        to: names of the destinations of their results; empty for all.
    """

    calling: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    age_from: Age | None = None
    age_below: Age | None = None
    answer: bool = True
    to: tuple[str, ...] = ()

    def fits(self, tags: Tags, calling: str) -> bool:
        """Whether the rule fits an image."""
        texts = (
            (self.calling, calling),
            (self.modality, tags.modality),
            (self.body_part, tags.body_part),
            (self.view, tags.view),
        )
        if not all(_match(patterns, text) for patterns, text in texts):
            return False
        if self.age_from is None and self.age_below is None:
            return True
        if tags.age is None:
            return False
        return (self.age_from or 0) <= tags.age and (self.age_below is None or tags.age < self.age_below)


@dataclass(frozen=True)
class Ruling:
    """What the rules say about an image.

    Attributes:
        reason: why it is not answered; None where it is.
        to: names of the destinations of its results; empty for all.
    """

    reason: str | None = None
    to: tuple[str, ...] = ()


def apply_rules(rules: Sequence[Rule], tags: Tags, calling: str) -> Ruling:
    """Decide by the first rule that fits. If none fits, the image is not answered; without rules all images are."""
    for number, rule in enumerate(rules, start=1):
        if rule.fits(tags, calling):
            return Ruling(None if rule.answer else f"not answered: rule {number}", rule.to)
    return Ruling("not answered: no rule fits" if rules else None)


def _match(patterns: Sequence[str], text: str | None) -> bool:
    found = (text or "").strip().upper()
    return not patterns or any(fnmatchcase(found, each.strip().upper()) if found else not each for each in patterns)

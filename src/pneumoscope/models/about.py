"""What the makers of a model state: author, licence, source of the images, consent and funding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Len

from pneumoscope.config import quote
from pneumoscope.errors import UsageError

FREE = "text:"  # before terms that are no SPDX identifier
# Licences that Hugging Face calls as SPDX does, in lower case (https://huggingface.co/docs/hub/repositories-licenses).
_ON_THE_HUB = {
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-2.0",
    "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "EUPL-1.2", "ISC", "MIT", "MPL-2.0",
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """Statements that nobody but the makers of a model can make; None where nothing was stated."""

    author: Annotated[
        Annotated[str, Len(1, 4000)] | None, Doc("Who made the model: people or an institution, for the model card.")
    ] = None
    licence: Annotated[
        Annotated[str, Len(1, 4000)] | None,
        Doc("Licence of the model: an SPDX identifier such as CC-BY-4.0, or your own words after `text:`."),
    ] = None
    data_source: Annotated[
        Annotated[str, Len(1, 4000)] | None, Doc("Where the images are from: a sentence or a citation.")
    ] = None
    consent: Annotated[
        Annotated[str, Len(1, 4000)] | None,
        Doc("How consent, or its waiver, and ethics approval were obtained for the images."),
    ] = None
    funding: Annotated[Annotated[str, Len(1, 4000)] | None, Doc("Who funded the work, and what their role was.")] = None

    @property
    def spdx(self) -> str | None:
        """The licence as an SPDX expression; None if it is stated in other words or not at all."""
        return None if self.licence is None or self.licence.startswith(FREE) else self.licence

    @property
    def hub_licence(self) -> str | None:
        """The licence as Hugging Face calls it, `other` if it has no name there; None if it is not stated."""
        if self.licence is None:
            return None
        return self.licence.lower() if self.licence in _ON_THE_HUB else "other"

    @property
    def terms(self) -> str | None:
        """The licence as shown to readers, who can tell an SPDX identifier from other words."""
        if self.licence is None or self.spdx:
            return self.licence
        return f"“{self.licence.removeprefix(FREE).strip()}” (the author's own words, not an SPDX identifier)"


def check_licence(stated: str | None) -> str | None:
    """Check a licence and write it as SPDX does: `cc-by-4.0` becomes `CC-BY-4.0`.

    Raises:
        UsageError: it is neither an SPDX identifier or expression nor free text after `text:`.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if stated is None or (stated.startswith(FREE) and stated.removeprefix(FREE).strip()):
        return stated
    try:
        return str(canonicalize_license_expression(stated))
    except InvalidLicenseExpression:
        raise UsageError(
            "must be an SPDX identifier such as CC-BY-4.0 or Apache-2.0 (https://spdx.org/licenses), or your own "
            f"words after `text:`, found {quote(stated)}.",
            "licence",
        ) from None

"""Find texts in the wrong language with py3langid (140 languages, one small model, no network)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from sparcom_data.errors import InvalidInputError

# Below this confidence the identifier guesses. Formulae and code score 0.01 to 0.17 for some language; six-word
# sentences in French, German, Spanish, Swedish and Chinese score 0.50 to 0.98. Of 720 English instructions, none is
# identified as another language at or above it.
_SURE = 0.25
_LETTERS = re.compile(r"[^\W\d_]")
_FEWEST_LETTERS = 12


def foreign(texts: Sequence[str], language: str = "en") -> dict[int, str]:
    """Return positions of texts confidently identified as another language, with its ISO 639-1 code.

    Raises:
        InvalidInputError: the identifier does not know `language`.
    """
    identifier = _identifier()
    if language not in identifier.labels:
        raise InvalidInputError(
            f"a language is an ISO 639-1 code such as en, de or zh; {language!r} is not known. Give another"
        )
    found = {}
    for position, text in enumerate(texts):
        if len(_LETTERS.findall(text)) < _FEWEST_LETTERS and text.isascii():
            continue
        code, confidence = identifier.classify(text)
        if code != language and confidence >= _SURE:
            found[position] = str(code)
    return found


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

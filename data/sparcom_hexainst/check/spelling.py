"""Find spelling and typing errors: misspellings that `typos` knows, and a few typing slips.

`typos` is a spelling checker for source code, so identifiers and snippets do not trigger it. It lists misspellings
rather than words, so names do not trigger it either. It accepts British and American spelling.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from collections.abc import Sequence

from sparcom_data.errors import MissingExtraError
from sparcom_data.extras import install_command

_ISSUES_FOUND = 2
_LINE_BREAKS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_TWICE = re.compile(r"(?<![\w'-])([^\W\d_]+) \1(?![\w'-])")
_MAY_STAND_TWICE = frozenset({"that", "had", "her", "is", "do", "no", "bye", "so", "very", "ha", "please"})
_SLIPS = {
    r"(?<=[^\s.!?:;]) {2,}(?=[^\W\d_]+ [^\W\d_])": "two spaces within a sentence",
    r"[^\W\d_] [,;](?=\s)": "a space before a comma or semicolon",
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]": "a control character",
    r"�|Ã[\x80-\xbf©¨¤¶¼]|â€[™œ“\x9d]": "a sign of a decoding error",
    r"\A\s|\s\Z": "white space at an end",
}  # fmt: skip


def misspellings(texts: Sequence[str]) -> dict[int, list[str]]:
    """Return positions of texts with known misspellings, each as `word (correction or correction)`.

    Raises:
        MissingExtraError: the checker is not installed.
    """
    program = shutil.which("typos", path=sysconfig.get_path("scripts")) or shutil.which("typos")
    if program is None:
        raise MissingExtraError(f"the spelling check needs typos, which is not installed: {install_command('dataset')}")
    lines = "\n".join(_LINE_BREAKS.sub(" ", text) for text in texts)
    done = subprocess.run(  # noqa: S603  (a program of our own installation, on standard input)
        [program, "--isolated", "--binary", "--format", "json", "-"],
        input=lines.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode not in (0, _ISSUES_FOUND):
        raise MissingExtraError(f"typos failed ({done.stderr.decode(errors='replace').strip()}): reinstall it")
    found: defaultdict[int, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        item = json.loads(line)
        if item["type"] == "typo":
            found[item["line_num"] - 1].append(f"{item['typo']} ({' or '.join(item['corrections'][:3])})")
    return dict(found)


def slips(text: str) -> list[str]:
    """Return typing slips in one text: each kind once with its first location, and each doubled word once."""
    found = [
        f"{match.group(1)!r} twice in a row"
        for match in _TWICE.finditer(text)
        if match.group(1).casefold() not in _MAY_STAND_TWICE and len(match.group(1)) > 1
    ]
    for pattern, name in _SLIPS.items():
        if match := re.search(pattern, text):
            found.append(f"{name} at character {match.start() + 1}")
    return list(dict.fromkeys(found))

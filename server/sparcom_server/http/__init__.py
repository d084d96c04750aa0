"""HTTP plumbing: limits on bodies and connections, the check of the calling site, files, server-sent events."""

import sys


def parse_digits(digits: str) -> int:
    """Return the number in a header, at most `sys.maxsize`. int() refuses 4,301 digits."""
    digits = digits.lstrip("0")
    return min(int(digits or "0"), sys.maxsize) if len(digits) < 20 else sys.maxsize

"""Errors that a command line prints in one line, and text from files in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ToolError(Exception):
    """An error that the user can act on; the command line prints it and exits with `status`."""

    status = 1


class RunError(ToolError):
    """The run failed: invalid data, no space, a failed rank."""


class CallError(ToolError):
    """The call is invalid: nothing has been done and nothing written."""

    status = 2


def printable(text: object) -> str:
    """Return `text` with line breaks and other control characters escaped, for a message."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def quoted(path: object) -> str:
    """Return a path or name between quotes, on one line, for a message."""
    return f"'{printable(path)}'"


def join_lines(headline: str, problems: Iterable[str]) -> str:
    """Return one message: the headline with the only problem, or with a line per problem below."""
    lines = list(problems)
    if len(lines) == 1:
        return f"{headline}: {lines[0]}"
    return "\n".join([f"{headline}:", *(f"  {line}" for line in lines)])


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with up to three known words like `word`, or ''."""

    def fold(text: object) -> str:
        return str(text).lstrip("-").replace("_", "-").casefold()

    folded, wanted = {fold(one): printable(one) for one in known}, fold(word)
    near = difflib.get_close_matches(wanted, folded) or [
        one for one in folded if len(wanted) > 1 and wanted in one
    ]
    return f"; did you mean {' or '.join(folded[one] for one in near[:3])}?" if near else ""

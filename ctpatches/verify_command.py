"""The command `verify`: whether files are undamaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ctpatches.checksums import verify
from ctpatches.messages import RunError, printable, quoted
from ctpatches.streams import print_error


def run(files: Sequence[str], program: str, check: Callable[[str], str] | None = None) -> int:
    """Print whether files are undamaged; return 1 if one is not.

    `check` compares an undamaged file with something else: it returns the result, or raises a
    RunError with the difference.
    """
    status = 0
    for file in files:
        result = "undamaged"
        try:
            damages = verify(file)
            if check and not damages:
                result += f"; {check(file)}"
        except OSError as error:
            damages = [f"cannot be read: {error.strerror or error}"]
        except RunError as error:
            damages = [str(error)]
        for damage in damages:
            print_error(f"{quoted(file)}: {damage}", program)
            status = 1
        if not damages:
            print(f"{printable(file)}: {result}")
    return status

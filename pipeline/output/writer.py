"""What a rank writes blocks with; without NumPy, so that the command line starts quickly."""

from __future__ import annotations

from collections.abc import Callable

from ctpatches.files import Offset


class Writer:
    """Writes bytes at offsets of a partial file."""

    def write(self, offset: Offset, data: memoryview) -> None:
        """Write all of `data` there, now or later: it must not change afterwards."""
        raise NotImplementedError

    def when_written(self, block: int, function: Callable[[], None]) -> None:
        """Call a function when the block of a pair, all of which was passed, is in the file."""
        function()

    def flush(self) -> None:
        """Wait until everything has been written, or raise the error that prevented it."""

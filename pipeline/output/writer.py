"""What writes the bytes of blocks; without numpy, which the start of a run is not to load."""

from __future__ import annotations

from collections.abc import Callable


class Writer:
    """Writes bytes at an offset of a partial file."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at that byte, now or later: it must not change afterwards."""
        raise NotImplementedError

    def when_written(self, function: Callable[[], None]) -> None:
        """Call a function once everything before it has been written."""
        function()

    def flush(self) -> None:
        """Wait until everything has been written, or raise the error that prevented it."""

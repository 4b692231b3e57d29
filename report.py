"""A page to keep with a data set, and its figures as JSON: what is in it and how it was made.

One dictionary of plain figures is gathered first; it is the JSON, and the page is written from it.
The page needs no network and no script: style, drawings and pictures are in it. Neither holds a
time, a host name, a rank count or an absolute path, so the same job gives the same bytes; nor, with
`--anonymize`, a real name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

from report_figures import gather, paths_of
from report_page import page
from report_pictures import Coverage, wall
from utils import Config, Plan, RunError, Tally, quoted


def write(
    plan: Plan,
    file: str,
    side: str,
    config: Config,
    tally: Tally,
    command: str,
    slices: Sequence[Coverage],
) -> tuple[str, str]:
    """Write the page and the figures of a finished file beside it, in place of earlier ones.

    Parameters
    ----------
    plan : Plan
    file : str
        The h5 file.
    side : str
        '' without a split, else the side that the file is.
    config : Config
    tally : Tally
        Of the whole run.
    command : str
        The command line, quoted as for a shell.
    slices : sequence of Coverage
        The pairs that `report_pictures.coverage_pairs` names.

    Returns
    -------
    page, figures : str
        `<name>.html` and `<name>.json`.

    Raises
    ------
    RunError
        They cannot be written, or the file can no longer be read.
    """
    paths = paths_of(file)
    try:
        facts, sample = gather(plan, file, side, config, tally, command)
        tiles, reach = wall(sample, plan, config)
        facts["wall"] = {"patches": [one.patch for one in tiles], "difference_hu": reach}
        facts["coverage"] = [[one.target_file, one.kept, one.air] for one in slices]
        whole = page(facts, tiles, slices)
        data = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
        for path, content in zip(paths, (whole, data + "\n"), strict=True):
            _replace(path, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{quoted(file)} is complete, but its page {quoted(paths[0])} cannot be made: "
            f"{reason}; --resume completes the report"
        ) from error
    return paths


def _replace(path: str, content: str) -> None:
    """Write a text file under a temporary name and give it its own when it is whole."""
    partial = f"{path}.partial"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)  # it may be a link
        with open(partial, "x", encoding="utf-8", newline="\n") as out:
            out.write(content)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise

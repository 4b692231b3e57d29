"""The header of the output: the tables of the plan, and the comparison with an existing file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctpatches.header import Header, build_header
from ctpatches.schema import DIFFERENCE_COLUMNS, ROLES, VERSION, VIEW_COLUMNS
from ctpatches.validation import opened
from pipeline.config import Config
from pipeline.model import Difference, Plan
from pipeline.output import checkpoint
from pipeline.output.checkpoint import BlockRecord
from utils import Affine


def header(plan: Plan, config: Config, records: Sequence[BlockRecord] = ()) -> Header:
    """Build the header: of a file that is not complete, unless there is a record per pair."""
    nothing = BlockRecord(Affine(0, 0), Affine(0, 0), 0, (0, 0), Difference(), (0.0, 0.0))
    return build_header(
        planned_tables(plan) | filled_tables(records or [nothing] * len(plan.pairs)),
        config.as_json(),
        "hu" if config.in_hu else "stored",
        complete=bool(records),
    )


def planned_tables(plan: Plan) -> dict[str, NDArray[Any]]:
    """Return the columns that are known from the plan."""
    pairs = plan.pairs
    targets = [planned.pair.target for planned in pairs]
    positions = [np.nan if s.position_mm is None else s.position_mm for s in targets]
    out: dict[str, NDArray[Any]] = {
        "pair/patient": _text(planned.names.patient for planned in pairs),
        "pair/input_file": _text(planned.names.input_file for planned in pairs),
        "pair/target_file": _text(planned.names.target_file for planned in pairs),
        "pair/position_mm": np.array(positions, "<f8"),
        "pair/rows": np.array([s.rows for s in targets], "<u4"),
        "pair/columns": np.array([s.columns for s in targets], "<u4"),
        "pair/first_patch": np.array(plan.starts[:-1], "<u8"),
        "pair/patches": np.diff(np.array(plan.starts, "<u8")),
        "pair/degradation": _text(planned.degradation or "none" for planned in pairs),
    }
    for role in ROLES:
        slices = [getattr(planned.pair, role) for planned in pairs]
        out[f"pair/{role}_slope"] = np.array([s.slope for s in slices], "<f8")
        out[f"pair/{role}_intercept"] = np.array([s.intercept for s in slices], "<f8")
    views = (view for planned in pairs for view in planned.views)
    columns = zip(*views, strict=True)  # empty where patches are stored
    for (name, dtype), values in zip(VIEW_COLUMNS.items(), columns, strict=False):
        out[f"views/{name}"] = np.array(values, dtype)
    return out | {
        "left_out/patient": _text(one.patient for one in plan.left_out),
        "left_out/files": _text("\n".join(one.files) for one in plan.left_out),
        "left_out/reason": _text(one.reason for one in plan.left_out),
        "left_out/kind": _text(one.kind for one in plan.left_out),
    }


def filled_tables(records: Sequence[BlockRecord]) -> dict[str, NDArray[Any]]:
    """Return the columns that are known when the blocks have been written."""
    out = {"pair/checksum": np.array([record.checksum for record in records], "<u8")}
    measured = zip(*(record.difference for record in records), strict=True)
    for (name, dtype), values in zip(DIFFERENCE_COLUMNS.items(), measured, strict=True):
        out[f"pair/{name}"] = np.array(values, dtype)
    for number, role in enumerate(ROLES):
        affines = [getattr(record, f"{role}_affine") for record in records]
        out |= {
            f"pair/{role}_offset": np.array([affine.offset for affine in affines], "<f8"),
            f"pair/{role}_divisor": np.array([affine.divisor for affine in affines], "<f8"),
            f"pair/{role}_digest": np.array([r.digests[number] for r in records], "<u8"),
            f"pair/{role}_rounding": np.array([r.rounding[number] for r in records], "<f8"),
        }
    return out


def _text(values: Iterable[str]) -> NDArray[np.bytes_]:
    """Return strings of one length, UTF-8, padded with zeros."""
    raw = [value.encode("utf-8", "surrogateescape") for value in values]
    return np.array(raw, h5py.string_dtype("utf-8", max(map(len, raw), default=1) or 1))


def difference(path: str, plan: Plan, config: Config) -> str:
    """Return how a complete file differs from what a run would write; '' if it is of the same job.

    The plan has the digests of all slices.
    """
    now = {name: column.tolist() for name, column in planned_tables(plan).items()}
    try:
        with opened(path) as file:
            if file.version != VERSION:
                return f"it has format version {file.version}, expected {VERSION}"
            if file.store != config.store:  # other tables, and the configuration differs anyway
                now = {}
            then = {name: file.values(name).tolist() for name in now}
            configuration = file.attributes["configuration"]
            digests = (file.values(f"pair/{role}_digest").tolist() for role in ROLES)
            recorded = dict(enumerate(zip(*digests, strict=True)))
        changed = checkpoint.difference(
            {"configuration": configuration, **then}, {"configuration": config.as_json(), **now}
        )
        return changed or checkpoint.changed_pixels(plan, recorded)
    except (OSError, ValueError) as error:
        return str(error)

"""The figures of the page: a sample of the patches, counts, noise, histograms, what may be told."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctpatches.patchfile import REST, open_file
from utils import Config, Plan, Tally, __version__, generator, shown

if TYPE_CHECKING:
    import h5py

Facts = dict[str, Any]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: How much is looked at, whatever the size of the data set: windows of a patient and in all, pixels
#: of each side in all, and pairs of a patient.
SAMPLE_EACH, SAMPLE_WINDOWS, SAMPLE_PIXELS, SAMPLE_PAIRS = 100, 2000, 1_000_000, 8
#: Rows of so many bytes are read one by one.
ROW_BYTES = 4096
#: How many pixels are worked on at once.
PART_PIXELS = 1 << 16
#: Pictures of the page, their largest side in pixels, and windows drawn on one.
WALL, COVERAGES = 8, 4
TILE_SIZE, SLICE_SIZE, DRAWN_WINDOWS = 128, 512, 2500
#: Rows of a table of the page; the JSON has all.
TABLE_ROWS = 300
#: Grey ranges of the patches shown, HU: where the median of the target is below -500 (lung), below
#: 300, and above (bone).
LUNG_HU, SOFT_HU, BONE_HU = (-1350.0, 150.0), (-160.0, 240.0), (-450.0, 1050.0)
#: Patches on the wall have a mean above this where there are such: body, no table and no air.
BODY_HU = -700.0
#: Blue below zero, orange above, for colour-blind eyes too: red, green, blue at -1, -0.5, 0, ...
DIVERGING = ((10, 62, 125), (84, 153, 214), (246, 246, 244), (238, 150, 66), (140, 55, 2))

#: Options that decide what the file holds: as on the command line, unit, meaning.
OPTIONS = {
    "patch_size": ("--patch-size", "", "side of a patch in pixels"),
    "overlap": ("--overlap", "pixels", "shared by neighbouring windows"),
    "edge": ("--edge", "", "what the last window of a row does: move inward, or reach past"),
    "normalization_type": ("--normalization-type", "", "of each whole image, before augmentation"),
    "tensor_format": ("--tensor-format", "", "where the axis of the channel is"),
    "random_N": ("--random_N", "pairs", "of a patient, drawn at random"),
    "rot_augment": ("--rot_augment", "", "each patch also turned, and flipped"),
    "ds_augment": ("--ds_augment", "", "patches also from pairs downscaled to 0.8 and 0.6"),
    "air_threshold": ("--air_threshold", "", "windows of air give no patches"),
    "blurr_n_noise": ("--blurr_n_noise", "", "some input images blurred, some made noisier"),
    "intensity": ("--intensity", "", "what pixels are before they are normalised"),
    "hu_window": ("--hu-window", "HU", "range of the normalisation hu_window"),
    "input_gen_folder": ("--input-gen-folder", "", "name or pattern of the low-dose folders"),
    "target_gen_folder": ("--target-gen-folder", "", "name or pattern of the full-dose folders"),
    "unpaired": ("--unpaired", "", "what is done where a slice has no partner"),
    "anatomy_check": ("--anatomy-check", "", "what is done where a pair does not look like one"),
    "split": ("--split", "", "parts of all patients: train, val, test"),
    "bad_files": ("--bad-files", "", "what is done where a file is damaged"),
    "anonymize": ("--anonymize", "", "names of patients and files replaced by pseudonyms"),
    "seed": ("--seed", "", "every random draw hangs on it"),
}
#: Options whose value is a path or a name that the user gave.
PATHS = ("--input-folder", "--output-fname", "--split-file", "--config")
NAMES = ("--input-gen-folder", "--target-gen-folder")
#: Words of warnings that name no patient, to sort the warnings of a run with pseudonyms by.
REMARKS = ("not the same anatomy", "paired by InstanceNumber", "fewer than --random_N")


def paths_of(file: str) -> tuple[str, str]:
    """Return the names of the page and of the figures of a file."""
    stem, ending = os.path.splitext(file)
    if ending.lower() in (".html", ".json"):  # never in place of the data
        stem = file
    return f"{stem}.html", f"{stem}.json"


def number(value: float, digits: int | None = None) -> str:
    """Return a number with commas between thousands and a real minus sign."""
    told = f"{value:,.{digits}f}" if digits is not None else f"{value:,.6g}"
    return told.replace("-", "\u2212")


def median(values: NDArray[Any] | Sequence[float]) -> float:
    """Return what `numpy.median` does without NaN, which loads masked arrays first: 20 ms."""
    ordered = np.sort(values, axis=None)
    return float(ordered[(ordered.size - 1) // 2 : ordered.size // 2 + 1].mean())


# --- the sample ------------------------------------------------------------------------------


class Run(NamedTuple):
    """Consecutive patches of one view of a pair: row of the pair, first patch, end."""

    pair: int
    start: int
    stop: int


@dataclass(frozen=True)
class Sample:
    """Some patches of the file: of each window the first, which is neither turned nor flipped.

    Attributes
    ----------
    runs : list of Run
        What was read; every `orientations`-th patch of it is in the sample.
    fair : int
        So many patches at the front are of all pairs alike; what follows is of pairs whose input is
        neither blurred nor made noisier, at scale 1.
    index, pair : ndarray of int64, shape (n,)
        Which patch of the file, and which pair.
    row, col, orientation, scale : ndarray, shape (n,)
        As in `patch/` of the file.
    values : dict of str to ndarray of float32, shape (n, p, p)
        Of `input` and `target`, as in the file.
    to_hu : dict of str to ndarray of float64, shape (2, pairs)
        Factor and summand that make HU of them, for every pair of the file.
    """

    runs: list[Run]
    fair: int
    index: Rows
    pair: Rows
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    orientation: NDArray[np.uint8]
    scale: Floats
    values: dict[str, Floats]
    to_hu: dict[str, NDArray[np.float64]]

    def hu(self, side: str, chosen: Rows) -> Floats:
        """Return some patches of a side in HU, as `h5_read.denormalise` does."""
        factor, summand = self.to_hu[side].astype(np.float32)[:, self.pair[chosen], None, None]
        out: Floats = self.values[side][chosen] * factor
        out += summand
        return out


def members_of(plan: Plan, pairs: Iterable[int]) -> dict[str, list[int]]:
    """Group pairs by patient, by the name that the file has for the patient."""
    members: dict[str, list[int]] = {}
    for index in pairs:
        members.setdefault(plan.names[index].patient, []).append(index)
    return members


def choose_runs(plan: Plan, config: Config) -> tuple[list[Run], list[Run]]:
    """Draw the patches to look at, of every patient.

    Returns
    -------
    fair : list of Run
        Of every scale as many as its part of the file is.
    further : list of Run
        With `--blurr_n_noise`: at scale 1, of pairs whose input is left as it is.
    """
    rng = generator(config.seed, "report")
    budget = max(4, min(SAMPLE_WINDOWS, SAMPLE_PIXELS // config.patch_size**2))
    if not config.blurr_n_noise:
        return _draw_runs(list(range(len(plan.pairs))), len(config.scales), plan, budget, rng), []
    untouched = [i for i, kind in enumerate(plan.degradations) if not kind]
    return (
        _draw_runs(list(range(len(plan.pairs))), len(config.scales), plan, budget // 2, rng),
        _draw_runs(untouched, 1, plan, budget // 2, rng),
    )


def _draw_runs(
    pairs: list[int], views: int, plan: Plan, budget: int, rng: np.random.Generator
) -> list[Run]:
    """Draw runs of the first views of these pairs, the same number of windows of each patient."""
    kept = {i: _kept_by_view(plan.parts[i].kept) for i in pairs}
    groups = members_of(plan, [i for i in pairs if any(kept[i][:views])]).values()
    members = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    members = [members[i] for i in rng.permutation(len(members))[:budget]]
    windows = min(SAMPLE_EACH, budget // max(1, len(members)))
    runs: list[Run] = []
    for group in members:
        chosen = group[: min(SAMPLE_PAIRS, windows)]
        for place, index in enumerate(chosen):
            share = (windows + place) // len(chosen)
            runs += _runs_of(index, share, kept[index], views, plan, rng)
    return sorted(runs)


def _runs_of(
    index: int, windows: int, kept: list[int], views: int, plan: Plan, rng: np.random.Generator
) -> Iterator[Run]:
    """Draw a run of each view of a pair, so long as its part is, the first at least one window."""
    at = plan.starts[index]
    times = (plan.starts[index + 1] - at) // sum(kept)
    amounts = [windows * amount // sum(kept[:views]) for amount in kept[1:views]]
    amounts.insert(0, windows - sum(amounts))
    for there, wanted in zip(kept, amounts, strict=False):
        if wanted := min(there, wanted):
            first = at + int(rng.integers(there - wanted + 1)) * times
            yield Run(index, first, first + wanted * times)
        at += there * times


def _kept_by_view(kept: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(bits, "little").bit_count() for bits in kept]


def _reader(
    opened: h5py.File, descriptor: int, runs: list[Run], step: int
) -> Callable[[str], NDArray[Any]]:
    """Return what reads every `step`-th row of the runs of a dataset, shape (n, ...).

    Rows are read at their bytes, run by run: HDF5 takes longer to find them than to read them.
    """

    def read(name: str) -> NDArray[Any]:
        dataset = opened[name]
        begin, shape, kind = dataset.id.get_offset(), dataset.shape[1:], dataset.dtype
        wide = kind.itemsize * math.prod(shape)
        # Large rows one by one, only those that are wanted; small ones run by run.
        alone = wide >= ROW_BYTES
        pieces = [
            (row, row + 1) if alone else (start, stop)
            for _, start, stop in runs
            for row in (range(start, stop, step) if alone else (start,))
        ]
        rows = np.empty((sum(stop - start for start, stop in pieces), *shape), kind)
        room = rows.reshape(-1).view(np.uint8).data
        for start, stop in pieces:
            many = (stop - start) * wide
            if os.preadv(descriptor, [room[:many]], begin + start * wide) < many:
                raise OSError(f"it ends before patch {stop}")
            room = room[many:]
        return rows if alone else rows[::step]  # every run is a multiple of `step` long

    return read


def read_sample(file: str, opened: h5py.File, plan: Plan, config: Config) -> Sample:
    """Read the patches that `choose_runs` draws, with their provenance."""
    fair, further = choose_runs(plan, config)
    runs, size, step = fair + further, config.patch_size, config.orientations
    descriptor = os.open(file, os.O_RDONLY)
    try:
        read = _reader(opened, descriptor, runs, step)
        return Sample(
            runs=runs,
            fair=sum(run.stop - run.start for run in fair) // step,
            index=np.concatenate([np.arange(run.start, run.stop, step) for run in runs]),
            pair=read("patch/pair").astype(np.int64),
            row=read("patch/row"),
            col=read("patch/col"),
            orientation=read("patch/orientation"),
            scale=read("patch/scale"),
            values={side: read(side).reshape(-1, size, size) for side in ("input", "target")},
            to_hu={side: _to_hu(opened["pair"], side, config) for side in ("input", "target")},
        )
    finally:
        os.close(descriptor)


def _to_hu(table: h5py.Group, side: str, config: Config) -> NDArray[np.float64]:
    factor, summand = table[f"{side}_divisor"][...], table[f"{side}_offset"][...]
    if not config.in_hu:
        slope = table[f"{side}_slope"][...]
        factor, summand = factor * slope, summand * slope + table[f"{side}_intercept"][...]
    return np.stack([factor, summand])


# --- the figures -----------------------------------------------------------------------------


def gather(
    plan: Plan, file: str, side: str, config: Config, tally: Tally, command: str
) -> tuple[Facts, Sample]:
    """Return all figures of the page as plain data, and the patches that they were measured on."""
    with open_file(file) as opened:
        sample = read_sample(file, opened, plan, config)
        identity = {
            "format_version": int(opened.attrs["format_version"]),
            "fingerprint": opened[REST][...].tobytes().hex(),
        }
    patients, noise = count_patients(plan), measure_noise(sample, plan)
    for patient in patients:
        patient["noise"] = noise["patients"].get(patient["patient"])
    facts = {
        "file": os.path.basename(file),
        "bytes": os.path.getsize(file),
        "side": side,
        "tool_version": __version__,
        **identity,
        "command": public_command(command, config),
        "configuration": public_configuration(config),
        "unit": unit_of(config),
        "patch_shape": [config.patch_size] * 2,
        "totals": total(patients),
        "scales": count_scales(plan, config),
        "patients": patients,
        "noise_by_degradation": noise["degradations"],
        "histograms": histograms(sample, config),
        "sample": {
            "patches": sample.fair,
            "further_for_noise": len(sample.index) - sample.fair,
            "patients": len({plan.names[run.pair].patient for run in sample.runs}),
            "runs": [[run.start, run.stop] for run in sample.runs],
            "step": config.orientations,
        },
        "left_out": [
            {"patient": o.patient, "files": list(o.files), "reason": o.reason, "kind": o.kind}
            for o in plan.left_out
        ],
        "warnings": public_warnings(tally.warnings, config),
    }
    return facts, sample


def unit_of(config: Config) -> str:
    """Return what the values of the file are."""
    if config.normalization_type != "None":
        return f"normalised ({config.normalization_type})"
    return "HU" if config.in_hu else "stored values"


def count_patients(plan: Plan) -> list[Facts]:
    """Return pairs, windows and patches of every patient, in the order of the file."""
    out = []
    for patient, pairs in members_of(plan, range(len(plan.pairs))).items():
        windows = sum(sum(plan.parts[i].windows) for i in pairs)
        kept = sum(plan.parts[i].kept_windows for i in pairs)
        patches = sum(plan.starts[i + 1] - plan.starts[i] for i in pairs)
        counts = {"pairs": len(pairs), "windows": windows, "kept": kept, "air": windows - kept}
        out.append({"patient": patient, **counts, "patches": patches})
    return out


def total(patients: Sequence[Facts]) -> Facts:
    """Return the sums of the counts of all patients."""
    sums = {k: sum(p[k] for p in patients) for k in ("pairs", "windows", "kept", "air", "patches")}
    return {"patients": len(patients), **sums}


def count_scales(plan: Plan, config: Config) -> list[Facts]:
    """Return windows and patches of every scale."""
    out = []
    kept = np.sum([_kept_by_view(part.kept) for part in plan.parts], axis=0)
    for view, scale in enumerate(config.scales):
        windows = sum(part.windows[view] for part in plan.parts)
        counts = {"windows": windows, "kept": int(kept[view]), "air": windows - int(kept[view])}
        patches = int(kept[view]) * config.orientations
        too_small = sum(not part.windows[view] for part in plan.parts)
        out.append({"scale": scale, **counts, "patches": patches, "views_too_small": too_small})
    return out


def _in_parts(patches: int, size: int) -> Iterator[slice]:
    """Cut patches of so many pixels into parts that stay in the cache and take little memory."""
    few = max(1, PART_PIXELS // size)
    return (slice(start, start + few) for start in range(0, patches, few))


def measure_noise(sample: Sample, plan: Plan) -> dict[str, Facts]:
    """Measure input less target, on patches at scale 1 that are neither turned nor flipped.

    Returns
    -------
    dict
        `patients`: by patient, on pairs whose input is neither blurred nor made noisier;
        `degradations`: by what was done to the input.
    """
    chosen = np.flatnonzero((sample.scale == 1) & (sample.orientation == 0))
    kinds = np.array([d or "none" for d in plan.degradations])[sample.pair[chosen]]
    names = np.array([plan.names[i].patient for i in sample.pair[chosen]], object)
    size = sample.values["input"][0].size
    sums: dict[str, list[list[Floats]]] = {"hu": [], "file": []}
    for few in _in_parts(len(chosen), size):
        some = chosen[few]
        units = {
            "hu": sample.hu("input", some) - sample.hu("target", some),
            "file": sample.values["input"][some] - sample.values["target"][some],
        }
        for unit, apart in units.items():
            squares = np.square(apart, dtype=np.float64)  # those of extreme slopes exceed float32
            sums[unit].append([x.sum(axis=(1, 2), dtype=np.float64) for x in (apart, squares)])
    moments = {
        unit: [np.concatenate(parts) / size for parts in zip(*of_unit, strict=True)]
        for unit, of_unit in sums.items()
    }

    def of(rows: NDArray[np.bool_]) -> Facts:
        out: Facts = {"patches": int(rows.sum())}
        for unit, (first, second) in moments.items():
            mean = float(first[rows].mean())
            variance = float(second[rows].mean()) - mean**2
            out[f"mean_{unit}"], out[f"sd_{unit}"] = mean, math.sqrt(max(0.0, variance))
        return out

    untouched = kinds == "none"
    return {
        "patients": {n: of(untouched & (names == n)) for n in dict.fromkeys(names[untouched])},
        "degradations": {str(k): of(kinds == k) for k in sorted(set(kinds))},
    }


# --- histograms ------------------------------------------------------------------------------


def nice(least: float) -> float:
    """Return the smallest of ..., 0.5, 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9)))


def histograms(sample: Sample, config: Config) -> list[Facts]:
    """Count the sampled pixels by value: over their range, and near that of soft tissue."""
    fair = {side: values[: sample.fair] for side, values in sample.values.items()}
    low = min(float(values.min()) for values in fair.values())
    high = max(float(values.max()) for values in fair.values())
    # Whole values have to fall evenly into the bins, or the curve would be a comb.
    whole = config.normalization_type == "None"
    fine = nice(max((high - low) / 4000, 1.0 if whole else 1e-6))
    begin = math.floor(low / fine)
    bins = math.floor(high / fine) - begin + 1
    counts = {}
    for side, values in fair.items():
        counts[side] = np.zeros(bins, np.int64)
        for few in _in_parts(len(values), values[0].size):
            steps = values[few].ravel() / np.float32(fine)
            steps -= np.float32(begin)
            places = steps.astype(np.intp)
            np.clip(places, 0, bins - 1, out=places)
            counts[side] += np.bincount(places, minlength=bins)
    both = np.cumsum(counts["input"] + counts["target"])
    first, last = np.searchsorted(both, [both[-1] * 1e-4, both[-1] * (1 - 1e-4)])
    out = [_panel("all values", counts, begin, fine, int(first), int(last) + 1, 160)]
    soft = _soft_tissue(sample, config)
    if soft:
        first, last = (min(bins, max(0, round(v / fine) - begin)) for v in soft)
        inside = sum(int(c[first:last].sum()) for c in counts.values())
        if last - first >= 20 and inside > 0.01 * both[-1]:
            out.append(_panel("soft tissue", counts, begin, fine, int(first), int(last), 100))
    return out


def _soft_tissue(sample: Sample, config: Config) -> tuple[float, float] | None:
    """Return the range of soft tissue in the file's unit, if it is the same for every image."""
    figures = np.concatenate([sample.to_hu[s][:, sample.pair] for s in ("input", "target")], axis=1)
    factor, summand = figures[:, 0]
    if not np.allclose(figures, figures[:, :1]) or factor <= 0:
        return None
    low, high = SOFT_HU
    return (low - summand) / factor, (high - summand) / factor


def _panel(
    name: str, counts: dict[str, Rows], begin: int, fine: float, first: int, last: int, most: int
) -> Facts:
    """Return the counts from bin `first` to before `last`, in at most `most` wider bins."""
    merge = round(nice(max(1, (last - first) / most)))
    first = (begin + first) // merge * merge - begin
    wide = -(-(last - first) // merge)
    panel: Facts = {
        "name": name,
        "low": (begin + first) * fine,
        "width": merge * fine,
        "outside": {},
    }
    for side, of_side in counts.items():
        padded = np.zeros(wide * merge, np.int64)
        source = of_side[max(0, first) : first + wide * merge]
        padded[max(0, -first) : max(0, -first) + len(source)] = source
        panel[side] = padded.reshape(wide, merge).sum(axis=1).tolist()
        panel["outside"][side] = int(of_side.sum()) - sum(panel[side])
    return panel


# --- what may be told ------------------------------------------------------------------------


def public_command(command: str, config: Config) -> str:
    """Return the command without what only says how the work was done, and without folders.

    Of an absolute path the last name is left; with `--anonymize` nothing is left of a path.
    """
    how = {name.replace("_", "-") for name in Config.HOW} - {o[2:] for o in PATHS}
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            name, *value = word.split("=", 1)
            groups.append([name, *value])
        elif groups:
            groups[-1].append(word)
    told = ["python", "main.py"]
    for name, *values in groups:
        plain = name.replace("_", "-")
        if plain[2:] not in how:
            told += [name, *(_public_value(plain, value, config) for value in values)]
    return shlex.join(map(shown, told)).replace("'…'", "…")


def _public_value(option: str, value: str, config: Config) -> str:
    if config.anonymize and (option in (*PATHS, *NAMES) or "/" in value):
        return "…"
    return os.path.basename(value.rstrip("/")) or "…" if os.path.isabs(value) else value


def public_configuration(config: Config) -> Facts:
    """Return the options that decide what the file holds, without names of folders if need be."""
    out: Facts = json.loads(config.as_json())
    for name in ("input_gen_folder", "target_gen_folder"):
        if config.anonymize and out.get(name) is not None:
            out[name] = "…"
    return out


def public_warnings(warnings: Sequence[str], config: Config) -> list[str]:
    """Return the warnings of the run; with `--anonymize`, how many there are of each kind.

    Their words name patients and files, also such as are in no pair of this file.
    """
    if not config.anonymize:
        return list(warnings)
    kinds = [next((r for r in REMARKS if r in w), "other remarks") for w in warnings]
    return [f"{kind}: {kinds.count(kind)}" for kind in dict.fromkeys(kinds)]

"""A page to keep with a data set, and its figures as JSON: what is in it and how it was made.

One dictionary of plain figures is gathered first; it is the JSON, and the page is written from it.
The page needs no network and no script: style, drawings and pictures are in it. Neither holds a
time, a host name, a rank count or an absolute path, so the same job gives the same bytes; nor, with
`--anonymize`, a real name.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

import augment
import dicom_io
from h5_read import ORIENTATIONS, REST
from patching import MEAN_HU, TISSUE_HU, TISSUE_PART, Grid, kept_mask
from sanity import SLICE_HU, to_grey
from utils import AIR_HU, Config, Plan, RunError, Tally, __version__, generator, quoted, shown

Facts = dict[str, Any]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: How much is looked at, whatever the size of the data set: windows of a patient and in all, pixels
#: of each side in all, and pairs of a patient.
SAMPLE_EACH, SAMPLE_WINDOWS, SAMPLE_PIXELS, SAMPLE_PAIRS = 100, 2000, 2_000_000, 8
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


def write(
    plan: Plan, file: str, side: str, config: Config, tally: Tally, command: str
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

    Returns
    -------
    page, figures : str
        `<name>.html` and `<name>.json`.

    Raises
    ------
    RunError
        They cannot be written, or the file or a slice can no longer be read.
    """
    paths = paths_of(file)
    try:
        facts, sample = gather(plan, file, side, config, tally, command)
        tiles, reach = wall(sample, plan, config)
        slices = coverages(plan, config)
        facts["wall"] = {"patches": [one.patch for one in tiles], "difference_hu": reach}
        facts["coverage"] = [[one.target_file, one.kept, one.air] for one in slices]
        whole = page(facts, tiles, slices)
        data = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
        for path, content in zip(paths, (whole, data + "\n"), strict=True):
            _replace(path, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{quoted(file)} is complete, but its page {quoted(paths[0])} cannot be made: {reason}"
        ) from error
    return paths


def paths_of(file: str) -> tuple[str, str]:
    """Return the names of the page and of the figures of a file."""
    stem, ending = os.path.splitext(file)
    if ending.lower() in (".html", ".json"):  # never in place of the data
        stem = file
    return f"{stem}.html", f"{stem}.json"


def _replace(path: str, content: str) -> None:
    """Write a text file under a temporary name and give it its own when it is whole."""
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as out:
            out.write(content)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


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
        parts = []
        for _, start, stop in runs:
            data = os.pread(descriptor, (stop - start) * wide, begin + start * wide)
            if len(data) < (stop - start) * wide:
                raise OSError(f"it ends before patch {stop}")
            parts.append(np.frombuffer(data, kind).reshape(-1, *shape)[::step])
        return np.concatenate(parts)

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
    with h5py.File(file, "r", locking=False) as opened:
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
    units = {
        "hu": sample.hu("input", chosen) - sample.hu("target", chosen),
        "file": sample.values["input"][chosen] - sample.values["target"][chosen],
    }
    moments = {
        unit: [(apart**power).sum(axis=(1, 2), dtype=np.float64) / size for power in (1, 2)]
        for unit, apart in units.items()
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
        places = (values.ravel() / np.float32(fine) - np.float32(begin)).astype(np.int32)
        counts[side] = np.bincount(places.clip(0, bins - 1), minlength=bins)
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


# --- pictures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture of the page: PNG as a data URL, its size in pixels, and what it shows."""

    url: str
    width: int
    height: int
    alt: str


def picture(pixels: NDArray[np.uint8], alt: str) -> Picture:
    """Encode a grey or a blue-green-red picture."""
    _, data = augment.opencv().imencode(".png", pixels)
    url = "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
    return Picture(url, pixels.shape[1], pixels.shape[0], alt)


def smaller(image: Floats, most: int) -> Floats:
    """Return the image, its longer side at most so many pixels long."""
    rows, columns = image.shape
    part = most / max(rows, columns)
    if part >= 1:
        return image
    cv2 = augment.opencv()
    size = max(1, round(columns * part)), max(1, round(rows * part))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)


@dataclass(frozen=True)
class Tiles:
    """One pair of patches as pictures, with what to say of them."""

    patch: int
    patient: str
    told: list[str]
    shades: str
    pictures: list[Picture]


def spread(groups: Iterable[Sequence[int]], most: int, rng: np.random.Generator) -> list[int]:
    """Draw at most so many of all members, the groups taking turns."""
    decks = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    decks = [decks[i] for i in rng.permutation(len(decks))]
    drawn: list[int] = []
    while decks and len(drawn) < most:
        drawn += [deck.pop() for deck in decks[: most - len(drawn)]]
        decks = [deck for deck in decks if deck]
    return sorted(drawn)


def wall(sample: Sample, plan: Plan, config: Config) -> tuple[list[Tiles], float]:
    """Draw input, target and difference of some patches; return also the last one's range, HU."""
    means = sample.values["target"][: sample.fair].mean(axis=(1, 2))
    factor, summand = sample.to_hu["target"][:, sample.pair[: sample.fair]]
    bodies = np.flatnonzero(means * factor + summand > BODY_HU)
    groups: dict[str, list[int]] = {}
    for i in bodies if len(bodies) else range(len(means)):
        groups.setdefault(plan.names[sample.pair[i]].patient, []).append(int(i))
    chosen = np.array(spread(groups.values(), WALL, generator(config.seed, "report wall")))
    low, full = sample.hu("input", chosen), sample.hu("target", chosen)
    most = float(np.quantile(np.abs(low - full), 0.98))
    power = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    reach = max(1.0, math.ceil(most / power)) * power
    tiles = [
        _tiles(int(i), sample, plan, one_low, one_full, reach)
        for i, one_low, one_full in zip(chosen, low, full, strict=True)
    ]
    return tiles, reach


def _tiles(i: int, sample: Sample, plan: Plan, low: Floats, full: Floats, reach: float) -> Tiles:
    index, pair = int(sample.index[i]), int(sample.pair[i])
    middle = float(np.median(full))
    grey = LUNG_HU if middle < -500 else SOFT_HU if middle < 300 else BONE_HU
    low, full = smaller(low, TILE_SIZE), smaller(full, TILE_SIZE)
    position = plan.pairs[pair].target.position_mm
    told = [
        *([f"{number(position)} mm"] if position is not None else []),
        f"row {sample.row[i]}, column {sample.col[i]}",
        *([f"scale {sample.scale[i]:g}"] if sample.scale[i] != 1 else []),
        *({"blur": ["input blurred"], "noise": ["noise added"]}.get(plan.degradations[pair], [])),
    ]
    pictures = [
        picture(to_grey(low, *grey), f"Input, patch {index}"),
        picture(to_grey(full, *grey), f"Target, patch {index}"),
        picture(diverging((low - full) / reach), f"Input less target, patch {index}"),
    ]
    shades = f"grey {number(grey[0])} to {number(grey[1])} HU"
    return Tiles(index, plan.names[pair].patient, told, shades, pictures)


def diverging(values: Floats) -> NDArray[np.uint8]:
    """Return values from -1 to 1 in colours of `DIVERGING`; blue, green, red."""
    table = np.stack(
        [
            np.interp(np.linspace(-1, 1, 256), np.linspace(-1, 1, 5), c)
            for c in zip(*DIVERGING, strict=True)
        ],
        axis=1,
    ).astype(np.uint8)
    out: NDArray[np.uint8] = np.ascontiguousarray(table[to_grey(values, -1, 1)][..., ::-1])
    return out


@dataclass(frozen=True)
class Coverage:
    """A slice with its windows: how many are kept and not, and as outlines in its pixels."""

    target_file: str
    slice: Picture
    shape: tuple[int, int]
    kept: int
    air: int
    every: int
    kept_lines: str
    air_lines: str


def coverages(plan: Plan, config: Config) -> list[Coverage]:
    """Draw some slices, of as many patients as possible."""
    rng = generator(config.seed, "report coverage")
    return [
        coverage(plan, index, config)
        for index in spread(members_of(plan, range(len(plan.pairs))).values(), COVERAGES, rng)
    ]


def coverage(plan: Plan, index: int, config: Config) -> Coverage:
    """Draw the target slice of a pair at full size, with its windows."""
    pair, part, names = plan.pairs[index], plan.parts[index], plan.names[index]
    image = dicom_io.to_hu(dicom_io.read_pixels(config.input_folder, pair.target), pair.target)
    grid = Grid.of((pair.target.rows, pair.target.columns), config)
    kept = kept_mask(part, 0).reshape(len(grid.rows), len(grid.cols))
    told = f"Target slice {shown(names.target_file)} with the windows that patches were cut from"
    grey = to_grey(smaller(grid.pad(image, AIR_HU), SLICE_SIZE), *SLICE_HU)
    every = max(1, math.ceil(math.sqrt(kept.size / DRAWN_WINDOWS)))
    rows, cols, drawn = grid.rows[::every], grid.cols[::every], kept[::every, ::every]
    # The rejected ones lie further in: where two windows meet, both lines are seen.
    shapes = {}
    for keep, inset in ((True, min(2, 0.04 * grid.size)), (False, min(5, 0.1 * grid.size))):
        side, cross = f"{grid.size - 2 * inset:g}", "" if keep else "l{0} {0}"
        shapes[keep] = f"m{inset:g} {inset:g}h{side}v{side}h-{side}z{cross.format(side)}"
    lines = {True: "", False: ""}
    for (i, j), one in np.ndenumerate(drawn):
        lines[bool(one)] += f"M{cols[j]} {rows[i]}{shapes[bool(one)]}"
    number_kept = int(kept.sum())
    return Coverage(
        names.target_file,
        picture(grey & np.uint8(0xFC), told),  # 64 shades look the same and take less
        grid.shape,
        number_kept,
        kept.size - number_kept,
        every,
        lines[True],
        lines[False],
    )


# --- the page --------------------------------------------------------------------------------


def escaped(value: object) -> str:
    """Return a name or any other text as HTML: nothing in it is markup or a control character."""
    return html.escape(shown(value))


def named(value: object) -> str:
    """Return a name as HTML; its direction of writing does not spread to what is around it."""
    return f"<bdi>{escaped(value)}</bdi>"


def number(value: float, digits: int | None = None) -> str:
    """Return a number with commas between thousands and a real minus sign."""
    told = f"{value:,.{digits}f}" if digits is not None else f"{value:,.6g}"
    return told.replace("-", "\u2212")


def percent(part: float, whole: float) -> str:
    """Return a part of a whole, with one digit after the point."""
    if 0 < part < 0.001 * whole:
        return "less than 0.1\u202f%"
    return f"{100 * part / whole:.1f}\u202f%" if whole else "\u2013"


def bytes_told(size: int) -> str:
    """Return a size in the unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g}\u00a0{unit}"
    return f"{size}\u00a0bytes"


def counted(amount: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number(amount, 0)} {one if amount == 1 else many or one + 's'}"


def page(facts: Facts, tiles: list[Tiles], slices: list[Coverage]) -> str:
    """Return the whole page."""
    sections = [
        ("patches", "Patches", _wall_section(facts, tiles)),
        ("noise", "Noise removed", _noise_section(facts)),
        ("intensities", "Intensities", _histogram_section(facts)),
        ("coverage", "Coverage", _coverage_section(facts, slices)),
        ("counts", "Patients and counts", _count_section(facts)),
        ("left-out", "Left out", _left_out_section(facts)),
        ("made", "How it was made", _made_section(facts)),
        ("use", "How to use it", _use_section(facts)),
    ]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n'
        f"{content}\n</section>"
        for key, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escaped(facts["file"])} \u2013 paired CT patches</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
{_header(facts)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer><p>Written with the data set by version {escaped(facts["tool_version"])} of the tool. The
figures of this page are in {_code(paths_of(facts["file"])[1])} too.</p></footer>
</body>
</html>
"""


def _code(value: object) -> str:
    return f"<code>{escaped(value)}</code>"


def _header(facts: Facts) -> str:
    totals, (p, _) = facts["totals"], facts["patch_shape"]
    unit = facts["unit"]
    sides = {"train": "training", "val": "validation", "test": "test"}
    side = (
        f" \u00b7 {sides.get(facts['side'], escaped(facts['side']))} set" if facts["side"] else ""
    )
    spread_hu = [x["noise"]["sd_hu"] for x in facts["patients"] if x["noise"]]
    figures = [
        (number(totals["patients"], 0), "patient" if totals["patients"] == 1 else "patients"),
        (number(totals["pairs"], 0), "pairs of slices"),
        (number(totals["patches"], 0), f"pairs of patches, {p}\u00a0\u00d7\u00a0{p}\u00a0pixels"),
        (percent(totals["kept"], totals["windows"]), "of the windows kept"),
        *(
            [(f"{np.median(spread_hu):.1f} HU", "noise removed, median of the patients")]
            if spread_hu
            else []
        ),
        (bytes_told(facts["bytes"]), f"h5 file, {'in ' * (unit == 'HU')}{escaped(unit)}"),
    ]
    items = "".join(f"<div><dt>{told}</dt><dd>{value}</dd></div>" for value, told in figures)
    return f"""<header>
<p class="eyebrow">Paired CT patches{side}</p>
<h1>{named(facts["file"])}</h1>
<dl class="figures">{items}</dl>
</header>"""


def _table(caption: str, heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in a box of its own that scrolls.

    Parameters
    ----------
    caption : str
    heads : sequence of (str, str)
        Title and class of each column; the first column holds the heads of the rows.
    rows : sequence of sequence of str
        HTML.
    """

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        data = "".join(
            f'<td class="{kind}">{cell}</td>'
            for cell, (_, kind) in zip(rest, heads[1:], strict=True)
        )
        return f'<tr><th scope="row">{first}</th>{data}</tr>'

    kind = "scroll long" if len(rows) > 25 else "scroll"
    top = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in heads)
    body = "\n".join(map(line, rows[:TABLE_ROWS]))
    more = len(rows) - TABLE_ROWS
    note = f'<p class="note">{counted(more, "more row")} in the JSON.</p>' if more > 0 else ""
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"
        f"</div>{note}"
    )


def _img(one: Picture) -> str:
    return (
        f'<img src="{one.url}" width="{one.width}" height="{one.height}" '
        f'alt="{html.escape(one.alt)}">'
    )


DOT = " \u00b7 "


# --- sections --------------------------------------------------------------------------------


def _wall_section(facts: Facts, tiles: list[Tiles]) -> str:
    reach = number(facts["wall"]["difference_hu"])
    figures = "\n".join(
        f'<figure class="pair"><div class="tiles">{"".join(map(_img, one.pictures))}</div>'
        f"<figcaption><b>Patch {one.patch}</b>{DOT}{named(one.patient)}{DOT}"
        f'{DOT.join(map(escaped, one.told))}{DOT}<span class="shades">{one.shades}</span>'
        "</figcaption>"
        "</figure>"
        for one in tiles
    )
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in DIVERGING)
    return f"""<p class="lead">From left to right: input (low dose), target (full dose), and
input less target. Drawn at random among patches of the body, as they lie in the slice; in HU, any
normalisation undone.</p>
<div class="legend"><span class="scale">Difference: \u2212{reach} HU <i role="img"
style="background:linear-gradient(90deg, {stops})"
aria-label="from blue through white to orange"></i> +{reach} HU</span></div>
<div class="wall">
{figures}
</div>"""


def _noise_section(facts: Facts) -> str:
    measured = [p for p in facts["patients"] if p["noise"]]
    kinds = facts["noise_by_degradation"]
    normalised = any(abs(k["sd_hu"] - k["sd_file"]) > 1e-4 * k["sd_hu"] for k in kinds.values())
    heads = [("Patient", ""), ("", "bar"), ("SD, HU", "n"), ("Mean, HU", "n")]
    heads += [(f"SD, {escaped(facts['unit'])}", "n")] if normalised else []
    heads += [("Patches", "n")]
    most = max((p["noise"]["sd_hu"] for p in measured), default=0) or 1
    rows = [_noise_row(named(p["patient"]), p["noise"], most, normalised) for p in measured]
    table = _table("Input less target, by patient", heads, rows) if rows else ""
    missing = facts["totals"]["patients"] - len(measured)
    note = (
        f'<p class="note">Not measured: {counted(missing, "patient")} without such a patch in the '
        "sample.</p>"
        if missing
        else ""
    )
    if set(kinds) - {"none"}:
        words = {"none": "left as it was", "blur": "blurred", "noise": "made noisier"}
        most = max(k["sd_hu"] for k in kinds.values()) or 1
        rows = [_noise_row(words[k], kinds[k], most, normalised) for k in words if k in kinds]
        heads = [("Input", ""), *heads[1:]]
        note += _table("Input less target, by what was done to the input", heads, rows)
    return f"""<p class="lead">What a network is to take away: the standard deviation (SD) of input
less target. The mean tells whether the two doses agree in brightness; it should be near 0. Measured
on sampled patches at scale 1, neither turned nor flipped, whose inputs were neither blurred nor
made noisier.</p>
{table}{note}"""


def _noise_row(first: str, noise: Facts, most: float, normalised: bool) -> list[str]:
    share = 100 * noise["sd_hu"] / most
    cells = [first, f'<span class="meter" style="width:{share:.1f}%"></span>']
    cells += [number(noise["sd_hu"], 2), number(noise["mean_hu"], 2)]
    cells += [number(noise["sd_file"], 4)] if normalised else []
    return [*cells, number(noise["patches"], 0)]


def _histogram_section(facts: Facts) -> str:
    sample, unit = facts["sample"], escaped(facts["unit"])
    figures = "\n".join(_histogram(panel, facts["unit"]) for panel in facts["histograms"])
    return f"""<p class="lead">Values of the file, {unit}, in a sample of {
        counted(sample["patches"], "pair")
    } of patches of {counted(sample["patients"], "patient")}, drawn by the seed.</p>
<div class="legend"><span class="key target">target</span><span class="key input">input</span></div>
<div class="panels">
{figures}
</div>"""


#: Size of a histogram, and of what is around its field: left, right, top, bottom.
PLOT, MARGINS = (400, 232), (46, 10, 10, 40)


def _histogram(panel: Facts, unit: str) -> str:
    """Draw input and target as steps: over all values on a logarithmic scale."""
    log = panel["name"] == "all values"
    left, right, top, bottom = MARGINS
    wide, high = PLOT[0] - left - right, PLOT[1] - top - bottom
    sides = ("target", "input")
    shares = {
        s: np.array(panel[s]) / max(1, sum(panel[s]) + panel["outside"][s]) * 100 for s in sides
    }
    most = max(float(v.max()) for v in shares.values())
    ticks = _ticks_log(shares, most) if log else _ticks(0, most)
    floor, roof = ticks[0], max(most * (1.15 if log else 1.04), ticks[-1])

    def y(value: float) -> float:
        if log:
            value = max(value, floor)
            return float(top + high * (1 - math.log(value / floor) / math.log(roof / floor)))
        return float(top + high * (1 - value / roof))

    bins = len(shares["input"])
    low, span = panel["low"], bins * panel["width"]

    def x(value: float) -> float:
        return float(left + wide * (value - low) / span)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{left + wide}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{left - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{number(t)}</text>'
        for t in ticks
    )
    grid += "".join(
        f'<line class="tick" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top + high}" '
        f'y2="{top + high + 4}"/><text x="{x(t):.1f}" y="{top + high + 17}" '
        f'text-anchor="middle">{number(t)}</text>'
        for t in _ticks(low, low + span, 5)
    )
    paths = ""
    for s in sides:
        steps = "".join(f"V{y(v):.1f}h{wide / bins:.2f}" for v in shares[s])
        line = f"M{left} {top + high}{steps}V{top + high}"
        paths += f'<path class="{s}" d="{line}"/>'
    about = f"Histogram of input and target, {panel['name']}"
    width = number(panel["width"])
    scale = ", logarithmic" if log else ""
    outside = sum(panel["outside"].values())
    whole = outside + sum(sum(panel[s]) for s in sides)
    beyond = f"; {percent(outside, whole)} of the pixels lie outside" if outside else ""
    return f"""<figure class="histogram"><svg viewBox="0 0 {PLOT[0]} {PLOT[1]}" role="img"
aria-label="{about}">{grid}{paths}
<line class="axis" x1="{left}" x2="{left + wide}" y1="{top + high}" y2="{top + high}"/>
<text x="{left + wide / 2:.0f}" y="{PLOT[1] - 6}" text-anchor="middle">{escaped(unit)}</text></svg>
<figcaption><b>{panel["name"].capitalize()}</b>, % of the pixels in bins of {width}{scale}{beyond}.
</figcaption></figure>"""


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`."""
    step = nice(max((high - low) / most, 1e-12))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _ticks_log(shares: dict[str, NDArray[np.float64]], most: float) -> list[float]:
    """Return powers of ten from below the smallest share that is worth a look."""
    least = min(float(v[v > 0].min()) for v in shares.values() if v.any())
    first = max(math.floor(math.log10(least)), math.floor(math.log10(most)) - 3)
    return [10.0**i for i in range(first, math.floor(math.log10(most)) + 1)]


def _coverage_section(facts: Facts, slices: list[Coverage]) -> str:
    low, high = (number(v) for v in SLICE_HU)
    air = facts["configuration"]["air_threshold"]
    rule = (
        f"Kept are windows with more than {TISSUE_PART:.0%} of the target's pixels above "
        f"{number(TISSUE_HU)} HU and a mean above {number(MEAN_HU)} HU."
        if air
        else "All windows are kept: <code>--air_threshold</code> was not given."
    )
    key = '<span class="key kept">kept</span>'
    key += '<span class="key air">left out as air</span>' if air else ""
    figures = "\n".join(_coverage_figure(one, air) for one in slices)
    return f"""<p class="lead">Target slices at scale 1 with the windows that patches were cut
from. {rule}</p>
<div class="legend">{key}<span>Grey: {low} to {high} HU</span></div>
<div class="slices">
{figures}
</div>"""


def _coverage_figure(one: Coverage, air: bool) -> str:
    rows, columns = one.shape
    told = counted(one.kept, "window") + (f" kept, {number(one.air, 0)} of air" if air else "")
    if one.every > 1:
        told += f"; drawn is one in {one.every} of each row and column"
    return (
        f'<figure class="slice"><div class="stack">{_img(one.slice)}'
        f'<svg viewBox="0 0 {columns} {rows}" aria-hidden="true">'
        f'<path class="air" d="{one.air_lines}"/><path class="kept" d="{one.kept_lines}"/></svg>'
        f"</div><figcaption>{named(one.target_file)}<br>{told}</figcaption></figure>"
    )


def _count_section(facts: Facts) -> str:
    columns = [("Windows", "windows"), ("Kept", "kept"), ("Air", "air"), ("Patches", "patches")]
    heads = [("Patient", ""), ("Pairs", "n"), *((title, "n") for title, _ in columns)]
    keys = ["pairs", *(key for _, key in columns)]
    rows = [[named(p["patient"]), *(number(p[k], 0) for k in keys)] for p in facts["patients"]]
    last = ["All", *(number(facts["totals"][k], 0) for k in keys)]
    table = _table("Counts by patient", heads, rows)
    cells = "".join(f'<td class="n">{cell}</td>' for cell in last[1:])
    foot = f'<tfoot><tr><th scope="row">{last[0]}</th>{cells}</tr></tfoot></table>'
    table = table.replace("</table>", foot, 1)
    scales = ""
    if len(facts["scales"]) > 1:
        rows = [
            [number(s["scale"]), *(number(s[k], 0) for _, k in columns)] for s in facts["scales"]
        ]
        heads = [("Scale", ""), *((title, "n") for title, _ in columns)]
        scales = _table("Counts by scale", heads, rows)
    return f"""<p class="lead">A window is a place that a patch is cut from; a kept window gives
{
        "three patches: as it is, turned, and flipped"
        if facts["configuration"]["rot_augment"]
        else "one patch"
    }.</p>
{table}{scales}"""


def _left_out_section(facts: Facts) -> str:
    parts = [_left_out_lead(facts)]
    if facts["left_out"]:
        heads = [("Files", "wrap"), ("Patient", ""), ("Why", "wrap")]
        rows = [
            ["<br>".join(map(named, one["files"])), named(one["patient"]), escaped(one["reason"])]
            for one in facts["left_out"]
        ]
        parts.append(_table("Files that give no patches", heads, rows))
    warnings = facts["warnings"]
    if warnings:
        shown_ones = "".join(f"<li>{escaped(w)}</li>" for w in warnings[:TABLE_ROWS])
        more = len(warnings) - TABLE_ROWS
        note = f'<p class="note">{counted(more, "more")} in the JSON.</p>' if more > 0 else ""
        parts.append(f"<h3>Warnings of the run</h3><ul>{shown_ones}</ul>{note}")
    return "\n".join(parts)


def _left_out_lead(facts: Facts) -> str:
    totals, options, files = facts["totals"], facts["configuration"], facts["left_out"]
    amount = sum(len(one["files"]) for one in files)
    told = [f"{counted(amount, 'file')}, listed below." if files else "No file of these patients."]
    if options["random_N"] is not None:
        told.append(
            f"Of each patient {counted(options['random_N'], 'pair')} at most, as asked for."
        )
    if totals["air"]:
        part = percent(totals["air"], totals["windows"])
        told.append(f"{counted(totals['air'], 'window')} of air, {part} of all.")
    small = sum(s["views_too_small"] for s in facts["scales"])
    if small:
        told.append(f"{counted(small, 'view')} smaller than a patch.")
    return f'<p class="lead">{" ".join(told)}</p>'


def _made_section(facts: Facts) -> str:
    defaults = {f.name: f.default for f in fields(Config)}
    configuration = facts["configuration"]
    rows = []
    for key in sorted(configuration, key=lambda k: [*OPTIONS, k].index(k)):
        value = configuration[key]
        option, unit, meaning = OPTIONS.get(key, (f"--{key.replace('_', '-')}", "", ""))
        plain = tuple(value) if isinstance(value, list) else value
        told = escaped(_told(key, value))
        told = told if plain == defaults.get(key) else f"<b>{told}</b>"
        told += f' <span class="unit">{unit}</span>' if unit and value is not None else ""
        rows.append([f"<code>{option}</code>", told, meaning])
    heads = [("Option", ""), ("Value", ""), ("Meaning", "wrap")]
    return f"""<p class="lead">The command, without folders and without options that only say how
the work was done, such as <code>--mpi_run</code>:</p>
<pre class="command"><code>{_command_lines(facts["command"])}</code></pre>
{_table("Options that decide what the file holds; bold: not the default", heads, rows)}"""


def _command_lines(command: str) -> str:
    """Return the command with a line for each option."""
    lines: list[str] = []
    for word in shlex.split(command.replace("\u2026", "'\u2026'")):
        if word.startswith("--") or not lines:
            lines.append("")
        quoted_word = word if word == "\u2026" else shlex.join([word])
        lines[-1] = f"{lines[-1]} {quoted_word}".strip()
    return " \\\n    ".join(map(escaped, lines))


def _told(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "all" if key == "random_N" else "\u2013"
    if key == "patch_size":
        return f"p{value}"
    if isinstance(value, list):
        return (" to " if key == "hu_window" else ", ").join(number(v) for v in value)
    return str(value)


#: Where a patch comes from: datasets of the file, and what they say.
PROVENANCE = (
    ("patch/pair", "row of the table <code>pair/</code>, which names patient and files"),
    ("patch/scale", "of the pair that the patch was cut from: 1, 0.8 or 0.6"),
    ("patch/row, patch/col", "first row and column of the window at that scale, pixels"),
    ("patch/orientation", ""),
    ("pair/degradation", "what was done to the input: none, blur or noise"),
    ("pair/*_offset, *_divisor", "undo the normalisation: value \u00d7 divisor + offset"),
    ("pair/*_slope, *_intercept", "HU of stored values: slope \u00d7 value + intercept"),
    ("pair/checksum, checksum", "of a pair\u2019s block, and of all other bytes"),
)


def _use_section(facts: Facts) -> str:
    codes = "; ".join(f"{code}: {told}" for code, told in enumerate(ORIENTATIONS))
    rows = [[f"<code>{key}</code>", told or codes] for key, told in PROVENANCE]
    table = _table("Where every patch comes from", [("Dataset", ""), ("Holds", "wrap")], rows)
    verify = shlex.join(["python", "main.py", "--verify", facts["file"]])
    return f"""<h3>Load it</h3>
<p>With h5py alone, or with <code>h5_dataset.py</code> and <code>h5_read.py</code> of the tool,
which can be copied beside a training script.</p>
<pre><code>{text_lines(snippet(facts))}</code></pre>
<h3>Trace a patch</h3>
<p>The table <code>patch/</code> has a row a patch and <code>pair/</code> a row a pair, so every
patch can be followed to the pixels of the slices that it was cut from.
<code>h5_read.provenance(file, patch)</code> looks it up;
<code>h5_read.denormalise</code> gives HU back.</p>
{table}
<h3>Verify it</h3>
<p>The file holds a checksum of every byte. Whether a copy is whole:</p>
<pre><code>{escaped(verify)}</code></pre>
<p>Fingerprint of this file, format version {facts["format_version"]} (its dataset
<code>checksum</code>, XXH3-128 of all tables, the checksums of the blocks among them; the same job
gives the same):</p>
<pre><code>{facts["fingerprint"]}</code></pre>"""


def text_lines(lines: str) -> str:
    """Return several lines as HTML."""
    return "\n".join(map(escaped, lines.split("\n")))


def snippet(facts: Facts) -> str:
    """Return Python code that loads the file."""
    file, p = json.dumps(facts["file"], ensure_ascii=False), facts["patch_shape"][0]
    torch = facts["configuration"]["tensor_format"] == "torch"
    shape = f"(1, {p}, {p})" if torch else f"({p}, {p}, 1)"
    load = (
        f"from h5_dataset import PatchDataset\n\npatches = PatchDataset({file})"
        "  # for torch.utils.data.DataLoader"
        if torch
        else f"from h5_dataset import tf_dataset\n\npatches = tf_dataset({file}, 64)  # batches"
    )
    return f"""import h5py

with h5py.File({file}) as file:
    low, full = file["input"][0], file["target"][0]  # float32, {shape}

{load}"""


# --- the style -------------------------------------------------------------------------------

#: Nothing is fetched and nothing runs, whatever a name might smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d9dee3; --wash: #f4f6f8;
  --link: #0b57a4; --input: #b4530a; --target: #1c63ad; --fill: #1c63ad26;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e6e9ec; --soft: #a3adb7; --line: #343a41; --wash: #1d2125;
    --link: #84b9f5; --input: #f2a25c; --target: #7ab5f3; --fill: #7ab5f32e;
  }
}
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem;
  max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1, h2, h3 { line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { margin: 0 0 1.5rem; font-size: clamp(1.75rem, 5vw, 2.6rem); letter-spacing: -0.02em; }
h2 { margin: 0 0 0.6rem; font-size: 1.45rem; letter-spacing: -0.01em; }
h3 { margin: 2rem 0 0.5rem; font-size: 1.05rem; }
p { max-width: 44rem; margin: 0 0 1rem; }
a { color: var(--link); }
.eyebrow { margin: 0 0 0.35rem; color: var(--soft); font-weight: 600; }
.lead, .note, figcaption, .legend, footer { color: var(--soft); }
.note, figcaption, .legend, footer { font-size: 0.875rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.25rem 1.5rem; margin: 0; padding: 1.25rem 0; border-block: 1px solid var(--line);
}
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.figures dt { color: var(--soft); font-size: 0.875rem; line-height: 1.35; }
.figures dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.25; }
.figures dd, .n, svg text { font-variant-numeric: tabular-nums; }
nav ul {
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; margin: 1rem 0 0; padding: 0;
  list-style: none; font-size: 0.9375rem;
}
nav a { display: block; padding: 0.25rem 0; text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
section { margin-top: 3.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 0.5rem; line-height: 1.45; text-wrap: pretty; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
img, svg { display: block; max-width: 100%; height: auto; }
.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 1.5rem; margin: 0 0 1.25rem;
}
.scale { display: inline-flex; align-items: center; gap: 0.5rem; flex-wrap: wrap; }
.scale i { width: 7rem; height: 0.75rem; border-radius: 2px; }
.wall { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.wall { gap: 1.75rem 2rem; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.tiles img { width: 100%; image-rendering: pixelated; }
.panels, .slices { display: grid; gap: 2rem; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.slices { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.histogram svg { width: 100%; max-width: 34rem; }
.histogram text { fill: var(--soft); font-size: 11.5px; }
.grid { stroke: var(--line); }
.axis, .tick { stroke: var(--soft); }
path.target { fill: var(--fill); stroke: var(--target); stroke-width: 1.6; }
path.input { fill: none; stroke: var(--input); stroke-width: 1.6; }
path { stroke-linejoin: round; }
.stack { position: relative; background: #000; }
.stack img { width: 100%; }
.stack svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.stack path { fill: none; stroke-width: 1.4; vector-effect: non-scaling-stroke; }
path.kept { stroke: #4cc2ff; }
path.air { stroke: #ff9a2e; stroke-dasharray: 4 3; }
.key { display: inline-flex; align-items: center; gap: 0.45rem; }
.key::before { content: ""; width: 1.1rem; height: 0; border-top: 3px solid; }
.key.target::before { color: var(--target); }
.key.input::before { color: var(--input); }
.key.kept::before, .key.air::before { width: 1rem; height: 1rem; border: 2px solid #1597dc; }
.key.air::before {
  border: 2px dashed #d97706;
  background: linear-gradient(45deg, transparent 46%, #d97706 46% 54%, transparent 54%);
}
.scroll {
  overflow: auto; margin: 0 0 1rem; border-block: 1px solid var(--line);
}
.long { max-height: 40rem; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; }
caption span { position: sticky; inset-inline-start: 0.25rem; }
caption span { display: inline-block; max-width: calc(100vw - 2.5rem); white-space: normal; }
.shades { white-space: nowrap; }
.unit { color: var(--soft); }
caption { padding: 0.6rem 0.25rem; text-align: start; color: var(--soft); font-size: 0.875rem; }
th, td {
  padding: 0.4rem 1rem 0.4rem 0.25rem; text-align: start; vertical-align: baseline;
  white-space: nowrap;
}
thead th {
  position: sticky; top: 0; background: var(--paper); color: var(--soft); font-size: 0.875rem;
  font-weight: 600; box-shadow: inset 0 -1px var(--line);
}
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tfoot > tr > * { border-top: 2px solid var(--soft); font-weight: 650; }
.n { text-align: end; }
.wrap { white-space: normal; min-width: 12rem; }
td:last-child, th:last-child { padding-inline-end: 0.25rem; }
.bar { width: 40%; min-width: 4.5rem; }
.meter { display: block; height: 0.7rem; border-radius: 2px; background: var(--target); }
code { font: 0.9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
p code { overflow-wrap: anywhere; }
pre {
  margin: 0 0 1rem; padding: 0.9rem 1rem; overflow-x: auto; border-radius: 6px;
  background: var(--wash);
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 30rem) {
  th, td { padding-inline-end: 0.7rem; }
  .wrap { white-space: nowrap; }
}
@page { margin: 14mm; }
@media print {
  :root {
    --paper: #fff; --ink: #000; --soft: #333; --line: #bbb; --wash: #f4f4f4;
    --link: #000; --input: #b4530a; --target: #1c63ad; --fill: #1c63ad26;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  section { margin-top: 2rem; }
  .scroll { overflow: visible; max-height: none; }
  thead th { position: static; }
  figure, tr, pre, .figures { break-inside: avoid; }
  h2, h3, .lead, .legend, caption, thead { break-after: avoid; }
  tbody tr:first-child { break-before: avoid; }
  caption span { max-width: none; }
  .wall, .panels, .slices { grid-template-columns: repeat(2, 1fr); }
  th, td { padding-block: 0.25rem; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
  img, .meter, .scale i, .key::before {
    -webkit-print-color-adjust: exact; print-color-adjust: exact;
  }
}
"""

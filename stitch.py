#!/usr/bin/env python3
"""Put the patches of a pair, or a network's output for them, together to the slice again."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pipeline import streams
from utils import AIR_HU, CallError, RunError, ToolError, atomic_write, quoted, shown

if TYPE_CHECKING:  # heavy: --help answers without them
    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

    from ctpatches.validation import ValidatedFile

    Image = NDArray[np.float32]

SIDES = ("input", "target")
#: What an image can be given in; `file` is as the file holds it, normalised.
UNITS = ("hu", "stored", "file")
#: The least weight of a pixel along one axis, at the border of its patch; the largest is about 1.
FLOOR = 1e-3
DESCRIPTION = "stitched from patches"
#: What would be wrong about new pixels: extremes, padding, small pictures, signatures.
STALE = (
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "IconImageSequence", "MACParametersSequence"),
    *("DigitalSignaturesSequence", "DataSetTrailingPadding"),
)


# --- blending --------------------------------------------------------------------------------


def window(size: int) -> NDArray[np.float64]:
    """Return the weights of a patch's pixels, shape (size, size).

    A Hann window (raised cosine) with a floor, FLOOR + sin^2(pi (i + 1/2) / size), along each axis:
    a patch counts little near its border, where a network sees less around a pixel, but nowhere
    nothing, for there may be no other.
    """
    import numpy as np

    along = FLOOR + np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return np.outer(along, along)


def blend(
    patches: Image,
    rows: Sequence[int] | NDArray[np.integer[Any]],
    cols: Sequence[int] | NDArray[np.integer[Any]],
    shape: tuple[int, int],
) -> Image:
    """Lay patches on an image; where they overlap, take their weighted mean.

    Where all patches agree about a pixel, the result is that value, bit for bit: what is averaged
    is the difference from the first patch there, which is then exactly 0. (A weighted mean of equal
    values is not always that value: (0.1 x + 0.2 x) / 0.3 rounds three times.)

    Parameters
    ----------
    patches : ndarray of float32, shape (n, p, p)
        Finite values, as they lie in the image: not turned.
    rows, cols : sequence of int, shape (n,)
        First row and column of each in the image, pixels. They may reach past it.
    shape : tuple of int
        Rows and columns of the image.

    Returns
    -------
    ndarray of float32, shape `shape`
        NaN where there is no patch.
    """
    import numpy as np

    size = patches.shape[-1]
    # Large enough for patches that reach past the image; cropped at the end.
    reach = [
        max([n, *(int(a) + size for a in at)]) for n, at in zip(shape, (rows, cols), strict=True)
    ]
    first = np.full(reach, np.nan, np.float32)
    apart, weight = np.zeros(reach), np.zeros(reach)
    weights = window(size)
    for patch, row, col in zip(patches, rows, cols, strict=True):
        here = slice(row, row + size), slice(col, col + size)
        np.copyto(first[here], patch, where=np.isnan(first[here]))
        apart[here] += weights * (patch.astype(np.float64) - first[here])
        weight[here] += weights
    differ = apart != 0
    out = first.copy()
    out[differ] = (first[differ] + apart[differ] / weight[differ]).astype(np.float32)
    return out[: shape[0], : shape[1]]


# --- a pair of a file ------------------------------------------------------------------------


def stitch(
    values: NDArray[np.floating[Any]] | None,
    file: str | os.PathLike[str],
    pair: int,
    side: str = "target",
    scale: float = 1.0,
    unit: str = "hu",
    fill: float = math.nan,
) -> Image:
    """Put a slice together from its patches, or from a network's output for them.

    Parameters
    ----------
    values : ndarray, shape (n, p, p), (n, 1, p, p) or (n, p, p, 1), or None
        For the patches of this pair in the order of the file, all of them or those of the scale
        alone, in the normalisation of the file. None takes the patches of `side` in the file.
    file : path
        Where the patches are from.
    pair : int
        Row of the file's `pair/` table.
    side : {'target', 'input'}
        Whose normalisation is undone, see `ctpatches.file.denormalise`.
    scale : float
        Of the view: 1, or with `--ds_augment` 0.8 or 0.6, which give the downscaled slice.
    unit : {'hu', 'stored', 'file'}
        Of the result; with `file`, the normalisation is not undone.
    fill : float
        For pixels that no patch covers, in `unit`: windows of air that were left out.

    Returns
    -------
    ndarray of float32, shape (rows, columns) of the view
        Overlaps and the orientations of one window are blended (see `blend`). The file's own
        patches give back the view exactly, in the unit of the file; what undoing the normalisation
        costs is that of `ctpatches.file.denormalise`.

    Raises
    ------
    OSError
        The file cannot be read.
    IndexError
        There is no such pair.
    ValueError
        The file is no complete one of this tool, or damaged; an argument has no such choice; values
        do not fit the patches, or are not finite.
    """
    import numpy as np

    from ctpatches.file import denormalise
    from ctpatches.validation import opened

    if side not in SIDES or unit not in UNITS:
        raise ValueError(
            f"side {side!r}, unit {unit!r}; wanted: {' or '.join(SIDES)}, {', '.join(UNITS)}"
        )
    with opened(file) as source:
        block = _block(source, pair)
        if not np.isclose(scale, source.scales).any():
            there = ", ".join(f"{one:g}" for one in source.scales)
            raise ValueError(f"scale {scale:g}; the file has: {there}")
        columns = source.columns(block)
        chosen = np.isclose(columns["scale"], scale)
        if values is None:
            p = source.patch_size
            patches = source.read(side, block)[chosen].reshape(-1, p, p)
        else:
            patches = _fitting(np.asarray(values), source.patch_size, chosen)
        windows = {name: column[chosen] for name, column in columns.items()}
        image = _blended(patches, windows, _view_shape(source, pair, scale))
        # One affine map for all patches of a pair: undone once, after the blending.
        if unit != "file" and chosen.any():
            patch = block.start + int(np.flatnonzero(chosen)[0])
            image = denormalise(image[None], source, [patch], side, unit)[0]
    image[np.isnan(image)] = fill
    return image


def _block(source: ValidatedFile, pair: int) -> slice:
    """Return where the patches of a pair are."""
    if not 0 <= pair < source.pairs:
        raise IndexError(f"pair {pair} of {source.pairs}; wanted: 0 to {source.pairs - 1}")
    first, patches = (int(column[pair]) for column in source.blocks)
    return slice(first, first + patches)


def _view_shape(source: ValidatedFile, pair: int, scale: float) -> tuple[int, int]:
    import augment

    rows, columns = source.windows.shapes[:, pair].tolist()
    return augment.view_shape((rows, columns), scale)


def _fitting(values: NDArray[np.floating[Any]], size: int, chosen: NDArray[np.bool_]) -> Image:
    """Return the values of the chosen patches, shape (n, p, p).

    Raises
    ------
    ValueError
        There are more or fewer, of another size, or some that are no number.
    """
    import numpy as np

    all_patches, wanted = len(chosen), int(chosen.sum())
    if len(values) == all_patches:
        values = values[chosen]
    fits = values.shape[1:] in ((size, size), (1, size, size), (size, size, 1))
    if len(values) != wanted or not fits:
        raise ValueError(
            f"values of shape {values.shape}; wanted: {wanted} patches of {size} x {size}, or all "
            f"{all_patches} of the pair"
        )
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity")
    return values.reshape(-1, size, size).astype(np.float32)


def _blended(patches: Image, windows: dict[str, NDArray[Any]], shape: tuple[int, int]) -> Image:
    import numpy as np

    import augment

    codes = windows["orientation"].tolist()
    upright = [augment.undo_orientation(p, c) for p, c in zip(patches, codes, strict=True)]
    whole = np.array(upright, np.float32).reshape(patches.shape)
    return blend(whole, windows["row"], windows["col"], shape)


# --- DICOM -----------------------------------------------------------------------------------


class Derived(NamedTuple):
    """What `write_dicom` wrote.

    Attributes
    ----------
    series_uid : str
        Series Instance UID (0020,000E).
    clipped : int
        Number of pixels outside of what can be stored, which became the nearest that can.
    low_hu, high_hu : float
        The range that can be stored, by the type and the rescale slope and intercept of the source.
    """

    series_uid: str
    clipped: int
    low_hu: float
    high_hu: float


def write_dicom(
    image_hu: Image,
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    series_uid: str | None = None,
    description: str = DESCRIPTION,
    fill: float = AIR_HU,
) -> Derived:
    """Write an image as a CT slice derived from another.

    Everything is the source's, the patient's name and the geometry too, but for: new SOP and series
    UIDs, Image Type DERIVED\\SECONDARY, the descriptions, the source in Source Image Sequence
    (PS3.3 C.7.6.1.1 and C.12.4), and the pixels. Those are stored uncompressed, in the source's
    type and by its rescale slope and intercept: rounded to the nearest stored value (halves to the
    even one) and clipped to what its bits can hold.

    Parameters
    ----------
    image_hu : ndarray of float32, shape (rows, columns)
    source_path : path
        A CT slice of the same rows and columns.
    out_path : path
        Replaced if it exists.
    series_uid : str, optional
        Series Instance UID (0020,000E), the same for all slices of a series; by default a new one.
    description : str
        What was done: Series Description (0008,103E), Derivation Description (0008,2111).
    fill : float
        For NaN, HU.

    Returns
    -------
    Derived
        The series, and how many pixels were clipped.

    Raises
    ------
    RunError
        The source is no CT slice, or a file cannot be read or written.
    ValueError
        The image has another shape than the source, or a text does not fit its tag.
    """
    from pipeline.dicom.header import read_slice

    check_texts(series_uid, description)
    folder, name = os.path.split(os.fspath(source_path))
    slice_ = read_slice(folder, name)  # refuses what the tool has no rule for
    if image_hu.shape != (slice_.rows, slice_.columns):
        raise ValueError(
            f"an image of {' x '.join(map(str, image_hu.shape))} pixels; {quoted(source_path)} has "
            f"{slice_.rows} x {slice_.columns}"
        )
    derived = _derived(source_path, series_uid, description)
    clipped, low_hu, high_hu = _set_pixels(derived, image_hu, fill)
    _save(derived, os.fspath(out_path))
    return Derived(str(derived.SeriesInstanceUID), clipped, low_hu, high_hu)


def check_texts(series_uid: str | None, description: str) -> None:
    """Refuse what cannot stand in a DICOM header.

    Raises
    ------
    ValueError
        The UID is none, or the description is too long or not plain ASCII: a source may name any
        character set, and a backslash would part it into two values (PS3.5 6.2).
    """
    from pydicom.uid import RE_VALID_UID

    if series_uid is not None and not (
        re.fullmatch(RE_VALID_UID, series_uid) and len(series_uid) <= 64
    ):
        raise ValueError(f"series UID {series_uid!r}; wanted: digits and dots, as in 2.25.1234")
    plain = description.isascii() and description.isprintable() and "\\" not in description
    if not plain or len(description) > 64:
        raise ValueError(
            f"description {description!r}; wanted: up to 64 plain ASCII characters, no backslash"
        )


def _derived(
    source_path: str | os.PathLike[str], series_uid: str | None, description: str
) -> Dataset:
    """Return the header of a slice that is derived from another, without pixels."""
    from pydicom import Dataset, dcmread
    from pydicom.uid import UID, generate_uid

    with _reasons(source_path, "has a damaged header"):
        source = dcmread(source_path, stop_before_pixels=True)
        for _ in source.iterall():  # decodes every element, so that any byte order can be written
            pass
        out = Dataset()
        out.update(source)
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    for name in STALE:
        if name in out:
            del out[name]
    out.SOPInstanceUID = generate_uid()
    out.SeriesInstanceUID = UID(series_uid) if series_uid else generate_uid()
    kind = out.get("ImageType") or []
    out.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(kind, str) else kind[2:])]
    out.SeriesDescription = out.DerivationDescription = description
    out.SourceImageSequence = [reference]
    return out


def _set_pixels(derived: Dataset, image_hu: Image, fill: float) -> tuple[int, float, float]:
    """Set the pixels; return how many were clipped, and the lowest and highest HU of others."""
    import numpy as np

    slope, intercept = float(derived.RescaleSlope), float(derived.RescaleIntercept)
    bits, signed = int(derived.BitsStored), int(derived.PixelRepresentation)
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    hu = np.where(np.isnan(image_hu), fill, image_hu).astype(np.float64)
    exact = np.rint((hu - intercept) / slope)
    stored = exact.clip(low, high)
    width = int(derived.BitsAllocated) // 8
    raw = stored.astype(f"<{'i' if signed else 'u'}{width}").tobytes()
    # Of an even length, PS3.5 8.1.1.
    derived.add_new(0x7FE00010, "OW" if width == 2 else "OB", raw + b"\0" * (len(raw) % 2))
    low_hu, high_hu = sorted((low * slope + intercept, high * slope + intercept))
    return int((stored != exact).sum()), low_hu, high_hu


def _save(derived: Dataset, path: str) -> None:
    """Write the file under another name first: what stands at `path` is always whole."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    derived.file_meta = FileMetaDataset()
    derived.file_meta.MediaStorageSOPClassUID = derived.SOPClassUID
    derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with _reasons(path, "cannot be written"), atomic_write(path) as partial:
        derived.save_as(partial, enforce_file_format=True)


@contextlib.contextmanager
def _reasons(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn an error of the system or of pydicom into one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sources break rules in tags that do not matter here
            yield
    except OSError as error:
        raise RunError(f"{quoted(path)} {what}: {error.strerror or shown(error)}") from error
    except Exception as error:
        # Its words stay out: they may quote any tag, names among them.
        raise RunError(f"{quoted(path)} {what} ({type(error).__name__})") from error


# --- the command line ------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CallError(f"{message} (see --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(prog="stitch.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("file", metavar="FILE", help="an h5 file that main.py has made")
    add(
        "--pair",
        type=int,
        required=True,
        metavar="N",
        help="row of its pair/ table, from 0; required",
    )
    add(
        "--side",
        choices=SIDES,
        default="target",
        help="whose patches, and with --values whose normalisation is undone; default: %(default)s",
    )
    add(
        "--values",
        metavar="FILE.npy",
        help="a network's output for the patches of the pair, in the order of the file; "
        "default: the file's own patches",
    )
    add("--scale", type=float, default=1.0, metavar="S", help="1, 0.8 or 0.6; default: %(default)g")
    add(
        "--unit",
        choices=UNITS,
        default="hu",
        help="of .npy: HU, stored values, or as the file holds them; default: %(default)s",
    )
    add(
        "--source",
        metavar="PATH",
        help="for .dcm: the input folder of the run, or the very slice whose header is taken; from "
        "the folder that is the slice of --side, and with --values the input slice",
    )
    add("--series-uid", metavar="UID", help="for .dcm: the series to put it in; default: a new one")
    add(
        "--description",
        default=DESCRIPTION,
        metavar="TEXT",
        help="for .dcm: what was done to the slice; default: %(default)s",
    )
    add("--output", required=True, metavar="FILE", help="a .dcm or .npy file to make; required")
    add(
        "--overwrite", action="store_true", help="replace an output that exists; default: refuse to"
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Make the slice that the command line asks for.

    Raises
    ------
    ToolError
        The call or a file is wrong.
    """
    dicom = _check(options)
    lines = []
    try:
        values = _load(options.values) if options.values else None
        unit = "hu" if dicom else options.unit
        image = stitch(values, options.file, options.pair, options.side, options.scale, unit)
        if dicom:
            source = _source(options)
            derived = write_dicom(
                image,
                source,
                options.output,
                series_uid=options.series_uid,
                description=options.description,
            )
            lines = [f"{'slice':10} {shown(source)}", f"{'series':10} {derived.series_uid}"]
            if derived.clipped:
                lines.append(
                    f"{'clipped':10} {derived.clipped} of {image.size} pixels to "
                    f"{derived.low_hu:g} ... {derived.high_hu:g} HU"
                )
        else:
            _save_array(image, options.output)
    except OSError as error:
        if error.strerror is None:  # of HDF5, with the file's name in it
            raise RunError(shown(error)) from error
        raise RunError(f"{quoted(error.filename or options.file)}: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise RunError(shown(error)) from error
    print("\n".join([*lines, f"{'output':10} {shown(options.output)}"]))


def _check(options: argparse.Namespace) -> bool:
    """Return whether DICOM is wanted, if the call is right."""
    ending = os.path.splitext(options.output)[1].lower()
    if ending not in (".dcm", ".ima", ".npy"):
        raise CallError(f"--output {quoted(options.output)}; wanted: a name ending in .dcm or .npy")
    dicom: bool = ending != ".npy"
    if dicom and not options.source:
        raise CallError("a .dcm needs --source, the input folder of the run or the source slice")
    if dicom and options.scale != 1:
        raise CallError(f"--scale {options.scale:g} fits no source slice; wanted: .npy, or scale 1")
    try:
        check_texts(options.series_uid, options.description)
    except ValueError as error:
        raise CallError(shown(error)) from error
    if os.path.lexists(options.output) and not options.overwrite:
        raise CallError(f"--output {quoted(options.output)} exists; add --overwrite to replace it")
    return dicom


def _load(path: str) -> NDArray[Any]:
    import numpy as np

    try:
        # Mapped, so that a shape which the file is too short for takes no memory.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RunError(f"--values {quoted(path)} is no .npy file") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not values.ndim:
        raise RunError(f"--values {quoted(path)} holds no array of numbers")
    return values


def _save_array(image: Image, path: str) -> None:
    import numpy as np

    with (
        _reasons(path, "cannot be written"),
        atomic_write(path) as partial,
        open(partial, "wb") as file,
    ):
        np.save(file, image)


def _source(options: argparse.Namespace) -> str:
    """Return the slice whose header is taken.

    Raises
    ------
    RunError
        It is not there, or lies at another place in the patient than the pair.
    """
    from ctpatches.validation import opened
    from pipeline.dicom.header import read_slice

    path: str = options.source
    with opened(options.file) as source:
        name = source.slice_file("input" if options.values else options.side, options.pair)
        position = float(source.read("pair/position_mm", options.pair))
    if os.path.isdir(path):
        path = os.path.join(path, name)
    if os.path.realpath(path) == os.path.realpath(options.output):
        raise CallError(f"--output {quoted(options.output)} is the source slice; name another")
    if not os.path.isfile(path):
        raise RunError(
            f"no slice {quoted(path)}; name the slice itself with --source if it was moved, or if "
            "its name is a pseudonym"
        )
    found = read_slice(*os.path.split(path))
    # As far apart as input and target of a pair may lie, see `pairing.tolerance_mm`.
    near = max(0.01, 0.1 * (found.thickness_mm or 0.0))
    if found.position_mm is not None and abs(found.position_mm - position) > near:
        raise RunError(
            f"{quoted(path)} lies at {found.position_mm:g} mm, pair {options.pair} at "
            f"{position:g} mm; wanted: the slice that the patches were cut from"
        )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed run, 2 for a bad call."""
    try:
        run(build_parser().parse_args(argv))
    except ToolError as error:
        streams.print_error(error, "stitch.py")
        return error.status
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(streams.run(main, "stitch.py"))

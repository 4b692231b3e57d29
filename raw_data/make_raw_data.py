"""Make the sample data: paired CT slices of synthetic bodies, as DICOM files.

A body is a list of layers (organs, bones, vessels, gas) whose cross-sections change with z. Every
slice is rasterised with sub-pixels, projected, given Poisson noise and reconstructed by filtered
back-projection, once at full and once at a quarter of the dose. Both doses see exactly the same
anatomy; their noise is drawn independently. No real scan is used anywhere.

Run ``python make_raw_data.py`` to write the files again; the same seed gives the same bytes (with
the same versions of the libraries).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from skimage import transform

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice]
Point = tuple[float, float, float]

# the functions of scikit-image have no types of their own
project_parallel: Callable[..., Floats] = transform.radon
back_project: Callable[..., Floats] = transform.iradon

MU_WATER = 0.0192  # 1/mm, water at about 70 keV, the mean energy of a 120 kV beam
AIR_HU = -1000.0
INTERCEPT = -1024
MAX_STORED = 4095  # 12 bits stored
FULL_SIZE = 512
SUBPIXELS = 2
SUBSLICES = (-1.0, 0.0, 1.0)  # mm; averaged, so that a slice shows 3 mm of the body
THICKNESS = 3.0  # mm
INCREMENT = 6.0  # mm between slices
VIEWS_PER_PIXEL = 1.75  # above pi / 2, where sampling of the angles stops showing as streaks
UID_PREFIX = "1.2.826.0.1.3680043.8.498."
IMPLEMENTATION = UID(UID_PREFIX + "1")
ANATOMY_STREAM, NOISE_STREAM = 1, 2

FAT, MUSCLE, BLOOD, MARROW, CORTEX, LUNG, GAS = -100.0, 52.0, 42.0, 190.0, 620.0, -860.0, -985.0


@dataclass(frozen=True)
class Dose:
    """One dose level: the folder it is written to, its share of photons and its number."""

    folder: str
    label: str
    share: float
    number: int


DOSES = (Dose("full_3mm", "FD", 1.0, 1), Dose("quarter_3mm", "QD", 0.25, 2))


@dataclass(frozen=True)
class Patient:
    """What tells one synthetic patient from another.

    Lengths are in mm. `level` is the z of the first slice in the coordinates of the standard body,
    `table` the z that the header gives for it, `photons` the counts per detector element in air at
    full dose (a scanner's tube current modulation sets it from the size of the patient).
    """

    region: str
    level: float
    table: float
    spacing: float
    width: float
    depth: float
    fat: float
    contrast: bool
    photons: float
    current: int
    date: str
    time: str


PATIENTS = (
    Patient("CHEST", 4, -132.5, 0.7, 1.0, 0.98, 12, False, 7.0e4, 180, "20200107", "091500"),
    Patient("CHEST", -64, -241.0, 0.78, 1.09, 1.12, 21, True, 2.2e5, 240, "20200218", "134200"),
    Patient("ABDOMEN", 14, -318.5, 0.76, 1.1, 1.1, 19, True, 4.6e5, 300, "20200323", "102730"),
    Patient("ABDOMEN", -74, -402.0, 0.66, 0.94, 0.92, 10, False, 1.6e5, 160, "20200414", "154810"),
)


# --- geometry -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """A smooth closed shape: a superellipse with a wavy outline that changes with z.

    Coordinates are those of the standard body in mm: x to the patient's left, y to the back, z to
    the head.

    Parameters
    ----------
    x, y, a, b
        Centre and semi-axes.
    angle
        Rotation in radians.
    power
        Exponent of the superellipse; 2 is an ellipse, more is squarer.
    waves
        Rows (order, amplitude, phase, phase per mm of z) of the relative waves of the outline.
    z, half
        Centre and half length in z; an infinite half length makes a cylinder.
    dx, dy, grow
        Change per mm of z of the centre (mm) and of the size (relative), counted from `z`.
    """

    x: float
    y: float
    a: float
    b: float
    angle: float = 0.0
    power: float = 2.0
    waves: tuple[tuple[int, float, float, float], ...] = ()
    z: float = 0.0
    half: float = np.inf
    dx: float = 0.0
    dy: float = 0.0
    grow: float = 0.0

    def scale(self, z: float) -> float:
        """Return the relative size of the cross-section at `z`, 0 where there is none."""
        bulge = max(0.0, 1.0 - ((z - self.z) / self.half) ** 2)
        return max(0.0, 1.0 + self.grow * (z - self.z)) * math.sqrt(bulge)

    def centre(self, z: float) -> tuple[float, float]:
        """Return the centre (x, y) in mm of the cross-section at `z`."""
        return self.x + self.dx * (z - self.z), self.y + self.dy * (z - self.z)

    def reach(self, z: float) -> float:
        """Return a radius in mm that surely contains the cross-section at `z`."""
        corner = math.pow(2.0, max(0.0, 0.5 - 1.0 / self.power))
        wavy = 1.0 + sum(abs(wave[1]) for wave in self.waves)
        return max(self.a, self.b) * corner * wavy * self.scale(z)

    def polar(self, x: Floats, y: Floats, z: float) -> tuple[Floats, Floats]:
        """Return relative radius (1 on the outline) and angle (radians), both of shape (y, x)."""
        cx, cy = self.centre(z)
        along, across = (x - cx)[None, :], (y - cy)[:, None]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u = (along * cos + across * sin) / self.a
        v = (across * cos - along * sin) / self.b
        angle = np.arctan2(v, u)
        rho = (np.abs(u) ** self.power + np.abs(v) ** self.power) ** (1.0 / self.power)
        limit = np.full_like(rho, self.scale(z))
        for order, amplitude, phase, rate in self.waves:
            limit *= 1.0 + amplitude * np.cos(order * angle + phase + rate * z)
        return rho / np.maximum(limit, 1e-9), angle

    def shrunk(self, by: float) -> Blob:
        """Return the same shape with both semi-axes (and a finite half length) `by` mm shorter."""
        return replace(self, a=self.a - by, b=self.b - by, half=self.half - by)


@dataclass(frozen=True)
class Tube:
    """A straight piece of a vessel, an airway or the bowel: end points and radius in mm."""

    start: Point
    end: Point
    radius: float

    def thicker(self, by: float) -> Tube:
        """Return the same tube with a radius `by` mm larger."""
        return replace(self, radius=self.radius + by)


@dataclass(frozen=True)
class Texture:
    """Smooth random structure with mean 0 and SD 1: a sum of plane waves."""

    waves: Floats
    phases: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int = 64) -> Texture:
        """Draw `count` waves with lengths from 5 to 50 mm in random directions."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = np.exp(rng.uniform(np.log(5.0), np.log(50.0), size=(count, 1)))
        return cls(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, size=count))

    def field(self, x: Floats, y: Floats, z: float) -> Image:
        """Return the structure at `z` on the grid of `x` and `y` (mm), shape (y, x)."""
        # cos(p + q) written out: two products of vectors instead of a cosine of every pixel
        p = np.outer(self.waves[:, 0], x)
        q = np.outer(self.waves[:, 1], y) + (self.waves[:, 2] * z + self.phases)[:, None]
        total = np.cos(q).T @ np.cos(p) - np.sin(q).T @ np.sin(p)
        structure: Image = (total * math.sqrt(2.0 / len(self.phases))).astype(np.float32)
        return structure


class Canvas:
    """The cross-section being painted.

    Attributes
    ----------
    hu
        float32 array (y, x) of HU.
    x, y
        Coordinates in mm of its columns and rows, in the standard body.
    texture
        float32 array (y, x) of random structure without unit, SD 1.
    masks
        Regions that layers have left for the layers after them.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        self.x, self.y = x, y
        self.hu = np.full((len(y), len(x)), AIR_HU, dtype=np.float32)
        self.texture = np.zeros_like(self.hu)
        self.masks: dict[str, Mask] = {}

    def box(self, cx: float, cy: float, reach: float) -> Box:
        """Return the slices (rows, columns) within `reach` mm of a point in x and in y."""
        rows = np.searchsorted(self.y, (cy - reach, cy + reach))
        columns = np.searchsorted(self.x, (cx - reach, cx + reach))
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))

    def fill(self, box: Box, inside: Mask, hu: float, texture: float = 0.0) -> None:
        """Set the pixels `inside` a box to `hu` plus `texture` HU (SD) of random structure."""
        self.hu[box][inside] = hu + texture * self.texture[box][inside]

    def keep(self, name: str, box: Box, inside: Mask) -> None:
        """Add the pixels `inside` a box to the named mask."""
        mask = self.masks.setdefault(name, np.zeros(self.hu.shape, dtype=np.bool_))
        mask[box] |= inside

    def clip(self, box: Box, inside: Mask, within: str = "", outside: str = "") -> Mask:
        """Return `inside` restricted to one named mask and kept out of another."""
        if within:
            inside = inside & self.masks[within][box]
        if outside:
            inside = inside & ~self.masks[outside][box]
        return inside


# --- layers ---------------------------------------------------------------------------------------


class Layer(Protocol):
    """Something that can paint its cross-section at `z` onto a canvas."""

    def paint(self, canvas: Canvas, z: float) -> None:
        """Paint the cross-section at `z` (mm)."""


@dataclass(frozen=True)
class Fill:
    """A blob of one density; `above` keeps only the part in front of that y (gas rises)."""

    blob: Blob
    hu: float
    texture: float = 4.0
    within: str = ""
    outside: str = ""
    name: str = ""
    above: float = np.inf

    def paint(self, canvas: Canvas, z: float) -> None:
        """Paint the cross-section at `z` (mm)."""
        box = canvas.box(*self.blob.centre(z), self.blob.reach(z))
        rho, _ = self.blob.polar(canvas.x[box[1]], canvas.y[box[0]], z)
        inside = (rho < 1.0) & (canvas.y[box[0]] < self.above)[:, None]
        inside = canvas.clip(box, inside, self.within, self.outside)
        canvas.fill(box, inside, self.hu, self.texture)
        if self.name:
            canvas.keep(self.name, box, inside)


@dataclass(frozen=True)
class Region:
    """A blob that is not painted, only kept as a mask for later layers."""

    blob: Blob
    name: str

    def paint(self, canvas: Canvas, z: float) -> None:
        """Keep the cross-section at `z` (mm)."""
        box = canvas.box(*self.blob.centre(z), self.blob.reach(z))
        rho, _ = self.blob.polar(canvas.x[box[1]], canvas.y[box[0]], z)
        canvas.keep(self.name, box, rho < 1.0)


@dataclass(frozen=True)
class Tubes:
    """Tubes of one density; `above` keeps only the part in front of that y (gas rises)."""

    tubes: tuple[Tube, ...]
    hu: float
    texture: float = 0.0
    within: str = ""
    above: float = np.inf

    def paint(self, canvas: Canvas, z: float) -> None:
        """Paint the cross-section at `z` (mm)."""
        for tube in self.tubes:
            low, high = sorted((tube.start[2], tube.end[2]))
            if low - tube.radius < z < high + tube.radius:
                self._paint_one(canvas, z, tube)

    def _paint_one(self, canvas: Canvas, z: float, tube: Tube) -> None:
        start, end = np.array(tube.start), np.array(tube.end)
        middle, axis = (start + end) / 2, end - start
        reach = float(np.abs(axis[:2]).max()) / 2 + tube.radius
        box = canvas.box(float(middle[0]), float(middle[1]), reach)
        x = canvas.x[box[1]][None, :] - start[0]
        y = canvas.y[box[0]][:, None] - start[1]
        dz = z - start[2]
        along = (x * axis[0] + y * axis[1] + dz * axis[2]) / (axis @ axis)
        along = np.clip(along, 0.0, 1.0)
        square = (x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2
        square += (dz - along * axis[2]) ** 2
        inside = (square < tube.radius**2) & (canvas.y[box[0]] < self.above)[:, None]
        canvas.fill(box, canvas.clip(box, inside, self.within), self.hu, self.texture)


@dataclass(frozen=True)
class Ribs:
    """Ribs around a cage.

    Every rib goes down from the spine to the front, so that a slice cuts several of them, each as
    an arc, and the arcs move along the cage from slice to slice.

    Parameters
    ----------
    cage
        Outline on which the middle of the ribs lies.
    drop
        How far a rib goes down on its way round, in mm, for the right and the left side.
    phase
        Height of a rib at the spine, in mm.
    arc
        Angle from the spine at which bone ends, in radians; from there on cartilage.
    cartilage
        Angle from the spine at which cartilage ends.
    """

    cage: Blob
    drop: tuple[float, float]
    phase: float
    arc: float
    cartilage: float
    pitch: float = 27.0
    half_height: float = 6.5
    half_width: float = 4.3

    def paint(self, canvas: Canvas, z: float) -> None:
        """Paint the cross-section at `z` (mm)."""
        box = canvas.box(*self.cage.centre(z), self.cage.reach(z) + 10.0)
        rho, angle = self.cage.polar(canvas.x[box[1]], canvas.y[box[0]], z)
        round_ = np.abs((angle - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi)
        left = np.abs(angle) < np.pi / 2
        drop = np.where(left, self.drop[1], self.drop[0])
        height = z - self.phase + drop * (round_ / np.pi) ** 0.8
        height = (height + self.pitch / 2) % self.pitch - self.pitch / 2
        radius = np.hypot(self.cage.a * np.cos(angle), self.cage.b * np.sin(angle))
        radial = (rho - 1.0) * radius
        level = (radial / self.half_width) ** 2 + (height / self.half_height) ** 2
        core = (radial / (self.half_width - 1.3)) ** 2 + (height / (self.half_height - 1.3)) ** 2
        bone = round_ < self.arc
        canvas.fill(box, (level < 1) & (round_ < self.cartilage), 95.0, 8.0)
        canvas.fill(box, (level < 1) & bone, CORTEX + 60, 40.0)
        canvas.fill(box, (core < 1) & bone, MARROW + 30, 30.0)


@dataclass(frozen=True)
class Table:
    """The curved top of the patient table: two thin shells with foam between them."""

    top: float
    radius: float

    def paint(self, canvas: Canvas, z: float) -> None:
        """Paint the cross-section, the same at every `z`."""
        whole: Box = (slice(None), slice(None))
        bend = canvas.x[None, :] ** 2 / (2 * self.radius)
        depth = canvas.y[:, None] - self.top + bend
        lower = depth - 26.0 + bend * 0.8
        canvas.fill(whole, (depth > 0) & (lower < 0), -960.0)
        canvas.fill(whole, (depth > 0) & (depth < 2.2) & (lower < 0), -60.0)
        canvas.fill(whole, (np.abs(lower) < 0.9) & (depth > 0), -140.0)


# --- bodies ---------------------------------------------------------------------------------------


@dataclass
class Sculptor:
    """Collects the layers of one body, varying every shape at random."""

    rng: np.random.Generator
    layers: list[Layer] = field(default_factory=list)

    def vary(self, blob: Blob, shift: float = 2.0, size: float = 0.06, wave: float = 0.05) -> Blob:
        """Return the blob moved by about `shift` mm, resized and given a wavy outline."""
        rng = self.rng
        waves = tuple(
            (k, wave * rng.uniform(0.4, 1.0) * 2 / k, rng.uniform(0, 2 * np.pi),
             rng.uniform(-0.03, 0.03))
            for k in (2, 3, 4, 5)
        )  # fmt: skip
        dx, dy = rng.uniform(-shift, shift, 2)
        wide, deep = rng.uniform(1 - size, 1 + size, 2)
        return replace(
            blob, x=blob.x + dx, y=blob.y + dy, a=blob.a * wide, b=blob.b * deep, waves=waves
        )

    def add(self, *layers: Layer) -> None:
        """Put layers on top of those already there."""
        self.layers.extend(layers)

    def organ(self, blob: Blob, hu: float, **options: str | float) -> Blob:
        """Vary a blob, add it as a filled organ and return it."""
        varied = self.vary(blob)
        self.layers.append(Fill(varied, hu, **options))  # type: ignore[arg-type]
        return varied

    def bone(self, blob: Blob, shell: float = 1.6, marrow: float = MARROW) -> None:
        """Add a bone: a cortex `shell` mm thick around marrow."""
        varied = self.vary(blob, shift=0.6, size=0.04, wave=0.03)
        self.add(Fill(varied, CORTEX, texture=35.0))
        self.add(Fill(varied.shrunk(shell), marrow, texture=28.0))

    def hollow(self, blob: Blob, wall: float, content: float, gas: float, within: str) -> None:
        """Add a hollow organ: a wall (mm), content (HU) and gas in its front down to y = `gas`."""
        outer = self.organ(blob, 45.0, within=within)
        inner = outer.shrunk(wall)
        self.add(Fill(inner, content, texture=12.0, within=within))
        self.add(Fill(inner, GAS, texture=3.0, within=within, above=gas))

    def branches(
        self, start: Point, heading: Point, length: float, radius: float, levels: int
    ) -> Iterator[Tube]:
        """Grow a tree of vessels: every piece ends in two thinner, shorter ones."""
        if levels == 0:
            return
        unit = np.array(heading) / np.linalg.norm(heading)
        reached = np.array(start) + unit * length * self.rng.uniform(0.7, 1.2)
        end: Point = (float(reached[0]), float(reached[1]), float(reached[2]))
        yield Tube(start, end, radius)
        for share in (0.84, 0.7):
            turned = unit + self.rng.normal(scale=0.42, size=3)
            onward: Point = (float(turned[0]), float(turned[1]), float(turned[2]))
            yield from self.branches(end, onward, length * 0.84, radius * share, levels - 1)

    def winding(self, start: Point, steps: int, step: float, radius: float) -> tuple[Tube, ...]:
        """Return a chain of tubes with a smooth random course, like a loop of bowel."""
        tubes: list[Tube] = []
        here = np.array(start)
        heading = self.rng.normal(size=3)
        for _ in range(steps):
            heading = heading / np.linalg.norm(heading) + self.rng.normal(scale=0.45, size=3)
            # back towards the start, or the loop would leave the belly
            heading += (np.array(start) - here) * 0.012
            there = here + step * heading / np.linalg.norm(heading)
            ends = [(float(p[0]), float(p[1]), float(p[2])) for p in (here, there)]
            tubes.append(Tube(ends[0], ends[1], radius * self.rng.uniform(0.9, 1.1)))
            here = there
        return tuple(tubes)


def add_trunk(body: Sculptor, outline: Blob, wall: Blob) -> None:
    """Add table, skin, the fat under the skin and the muscle of the wall."""
    body.add(Table(outline.y + outline.b + 3.0, 1100.0))
    body.add(Fill(outline, 25.0, texture=10.0))
    body.add(Fill(outline.shrunk(1.8), FAT - 4, texture=7.0, name="body"))
    body.add(Fill(wall, MUSCLE, texture=9.0, name="wall"))


def add_back(body: Sculptor, y: float) -> None:
    """Add the muscles of the back on both sides of the spine, whose body is at `y` (mm)."""
    for side in (-1.0, 1.0):
        long = Blob(side * 29, y + 34, 25, 14, angle=side * -0.12, power=2.3)
        body.organ(replace(long, a=27, b=16), FAT + 15, within="body", texture=9.0)
        body.organ(long, 55.0, within="body", texture=14.0)
        body.organ(Blob(side * 12, y + 36, 8, 9), 50.0, within="body", texture=14.0)


def add_spine(body: Sculptor, y: float, phase: float) -> None:
    """Add the spine: bodies with discs between them, arch, canal and processes."""
    pitch = 33.0
    body.organ(Blob(0, y + 4, 27, 22), 48.0)
    disc = Blob(0, y, 19, 15, power=2.3)
    body.add(Fill(body.vary(disc, 0.5, 0.03, 0.02), 85.0, texture=8.0))
    for number in range(-8, 6):
        z = phase + number * pitch
        body.bone(replace(disc, power=2.5, z=z, half=pitch / 2 - 1.5, a=21, b=16.5))
        lumbar = replace(Blob(0, y + 31, 3.2, 13), z=z - 6, half=13)
        body.bone(lumbar, 1.1)
        for side in (-1.0, 1.0):
            body.bone(Blob(side * 25, y + 23, 15, 4.6, side * 0.25, z=z + 3, half=10), 1.2)
            body.bone(Blob(side * 13, y + 17, 4.6, 8.5, side * 0.2, z=z + 4, half=14), 1.3)
            body.bone(Blob(side * 9.5, y + 27, 11, 3.6, side * -0.55, z=z - 4, half=16), 1.2)
    body.organ(Blob(0, y + 20, 9.5, 8), -10.0, texture=6.0)
    body.organ(Blob(0, y + 20, 7, 5.6), 22.0)
    body.organ(Blob(0, y + 20, 4.6, 3.6), 40.0)


def add_airways(body: Sculptor) -> None:
    """Add the trachea and the main bronchi, with their walls."""
    fork: Point = (0.0, 12.0, 6.0)
    tubes = (
        Tube((-2.0, 6.0, 90.0), fork, 8.2),
        Tube(fork, (46.0, 22.0, -26.0), 5.8),
        Tube(fork, (-34.0, 20.0, -16.0), 6.8),
        Tube((-34.0, 20.0, -16.0), (-52.0, 34.0, -60.0), 4.4),
        Tube((46.0, 22.0, -26.0), (60.0, 36.0, -66.0), 4.2),
        Tube((-34.0, 20.0, -16.0), (-66.0, 2.0, -12.0), 3.4),
        Tube((46.0, 22.0, -26.0), (72.0, 0.0, -18.0), 3.4),
    )
    body.add(Tubes(tuple(tube.thicker(1.7) for tube in tubes), 30.0), Tubes(tubes, GAS))


def add_lung_vessels(body: Sculptor, blood: float) -> None:
    """Add a tree of vessels for every lobe, from the roots of the lungs outwards."""
    tubes: list[Tube] = []
    for side in (-1.0, 1.0):
        for _ in range(22):
            up = body.rng.uniform(-1.1, 0.9)
            start: Point = (side * 36.0, body.rng.uniform(2, 20), up * 34.0 - 20.0)
            heading: Point = (side * body.rng.uniform(0.3, 1), body.rng.uniform(-1, 0.9), up * 0.8)
            tubes += body.branches(start, heading, 24.0, body.rng.uniform(2.6, 5.0), 8)
    body.add(Tubes(tuple(tubes), blood - 10, within="lung"))


def add_great_vessels(body: Sculptor, blood: float) -> None:
    """Add arch of the aorta, pulmonary arteries, caval vein, gullet and azygos vein."""
    arch = [(22.0, 42.0, 20.0), (19.0, 26.0, 40.0), (9.0, 4.0, 50.0), (-5.0, -16.0, 42.0),
            (-11.0, -26.0, 22.0), (-6.0, -26.0, -24.0), (6.0, -22.0, -50.0)]  # fmt: skip
    aorta = [Tube(a, b, 14.0) for a, b in itertools.pairwise(arch)]
    pulmonary = (
        Tube((20.0, -36.0, -46.0), (24.0, -22.0, -4.0), 13.5),
        Tube((24.0, -20.0, -4.0), (40.0, 4.0, 4.0), 10.5),
        Tube((22.0, -18.0, -8.0), (-8.0, -3.0, -13.0), 11.0),
        Tube((-8.0, -3.0, -13.0), (-40.0, 8.0, -15.0), 9.0),
        Tube((40.0, 4.0, 4.0), (54.0, 28.0, -50.0), 6.5),
        Tube((-40.0, 8.0, -15.0), (-58.0, 24.0, -54.0), 6.5),
    )
    body.add(Tubes(pulmonary, blood + 4, texture=3.0))
    body.add(Tubes((Tube((-30.0, -24.0, 60.0), (-30.0, -18.0, -40.0), 8.5),), blood, texture=3.0))
    body.add(Tubes(tuple(aorta), blood, texture=3.0))
    body.add(Tubes((Tube((7.0, 33.0, 60.0), (9.0, 32.0, -120.0), 6.5),), 38.0, texture=6.0))
    body.add(Tubes((Tube((-9.0, 40.0, 10.0), (-8.0, 42.0, -120.0), 3.6),), blood - 4))


def add_heart(body: Sculptor, blood: float) -> None:
    """Add the heart: sac with fat, muscle and four chambers."""
    muscle = 92.0 if blood > 80 else 46.0
    body.organ(Blob(26, -24, 72, 52, 0.45, z=-78, half=58), FAT + 5, within="thorax")
    body.organ(Blob(26, -20, 65, 44, 0.5, z=-78, half=54), muscle, within="thorax", name="heart")
    body.organ(Blob(-24, -14, 23, 28, 0.2, z=-76, half=38), blood - 12)
    body.organ(Blob(14, -42, 33, 17, 0.45, z=-80, half=40), blood - 8)
    body.organ(Blob(10, 10, 31, 16, 0.1, z=-58, half=30), blood + 6)
    body.organ(Blob(46, -6, 29, 17, 0.6, z=-84, half=36), blood + 8)
    body.organ(Blob(2, -16, 14, 13, z=-56, half=18), blood + 10)


def add_domes(body: Sculptor, contrast: bool) -> None:
    """Add what pushes up the lungs from below: liver on the right, stomach and spleen left."""
    liver = 108.0 if contrast else 58.0
    dome = body.vary(Blob(-72, -2, 68, 72, 0.1, z=-136, half=78), wave=0.03)
    body.add(Fill(dome, liver, 5.0, within="lung", name="liver"))
    tubes = body.branches((-40, 4, -118), (-0.5, -0.3, 1.0), 24.0, 4.5, 5)
    body.add(Tubes(tuple(tubes), liver + (40 if contrast else -16), within="liver"))
    body.organ(Blob(-24, 14, 14, 11, z=-140, half=80), 120.0 if contrast else BLOOD)
    left = body.vary(Blob(76, 8, 62, 58, -0.2, z=-152, half=78), wave=0.03)
    body.add(Fill(left, FAT + 60, 8.0, within="lung", outside="heart", name="dome"))
    body.hollow(Blob(70, -8, 42, 34, z=-152, half=70), 4.0, 18.0, -14.0, "dome")
    body.organ(Blob(92, 34, 30, 26, -0.5, z=-150, half=66), liver + 8, within="dome")


def build_chest(body: Sculptor, patient: Patient) -> None:
    """Add the layers of a chest, from the arch of the aorta to the domes of the diaphragm."""
    blood = 165.0 if patient.contrast else BLOOD
    fat = patient.fat
    cage = body.vary(Blob(0, -8, 131, 86, power=2.2, grow=-0.001), 1.0, 0.02, 0.012)
    bare = Blob(0, -3, 143 + fat, 100 + fat * 0.6, power=2.3, grow=0.0006)
    outline = body.vary(bare, 1.0, 0.015, 0.014)
    add_trunk(body, outline, cage.shrunk(-6.5))
    add_back(body, 58.0)
    for side in (-1.0, 1.0):
        pectoral = Blob(side * 60, -90, 46, 8, side * 0.3, z=10, half=100)
        body.organ(pectoral, 55.0, within="body", texture=14.0)
        body.organ(replace(pectoral, x=side * 78, y=-77, a=26, b=5), 52.0, texture=12.0)
        flank = Blob(side * 133, 22, 9, 46, side * 0.22, z=-20, half=150)
        body.organ(flank, 53.0, within="body", texture=16.0)
        blade = Blob(side * 104, 66, 33, 4.4, side * -0.72, z=45, half=82, dx=side * 0.12)
        body.organ(replace(blade, a=42, b=13), 54.0, within="body", texture=16.0)
        body.bone(blade, 1.5)
    body.add(Fill(cage.shrunk(-6), MUSCLE - 4, 10.0))
    body.add(Fill(cage.shrunk(6.5), FAT + 20, 8.0, name="thorax"))
    body.add(Fill(cage.shrunk(7.5), LUNG, 16.0, name="lung"))
    phase, drops = body.rng.uniform(0, 27), body.rng.uniform(96, 116, 2)
    body.add(Ribs(cage, (float(drops[0]), float(drops[1])), float(phase), 2.45, 2.85))
    add_lung_vessels(body, blood)
    body.organ(Blob(4, 46, 27, 25), FAT + 20)
    body.organ(Blob(2, -14, 35, 42, power=2.2, grow=-0.002), FAT + 10)
    body.organ(Blob(4, -54, 21, 32, -0.2, power=2.1), FAT + 10, within="thorax")
    body.organ(Blob(0, -82, 22, 9), FAT + 10, within="thorax")
    body.organ(Blob(-34, 10, 14, 18, z=-18, half=34), 36.0)
    body.organ(Blob(38, 12, 13, 18, z=-16, half=34), 36.0)
    add_great_vessels(body, blood)
    add_heart(body, blood)
    add_domes(body, patient.contrast)
    add_airways(body)
    add_descending_aorta(body, blood)
    add_spine(body, 58.0, float(body.rng.uniform(-8, 8)))
    body.bone(Blob(0, -92, 19, 6, power=2.6, grow=0.004), 1.5, 150.0)


def add_descending_aorta(body: Sculptor, blood: float) -> None:
    """Add the aorta beside the spine, with a little fat that parts it from heart and liver."""
    down = (
        Tube((22.0, 42.0, 20.0), (20.0, 41.0, -60.0), 12.0),
        Tube((20.0, 41.0, -60.0), (12.0, 37.0, -130.0), 11.5),
    )
    body.add(Tubes(tuple(tube.thicker(2.0) for tube in down), FAT + 40), Tubes(down, blood, 3.0))


def add_upper_organs(body: Sculptor, contrast: bool) -> None:
    """Add stomach, spleen, pancreas, liver and gall bladder."""
    liver, spleen = (112.0, 124.0) if contrast else (58.0, 48.0)
    body.organ(Blob(96, 30, 24, 46, 0.45, z=12, half=58), spleen, within="cavity")
    body.hollow(Blob(58, -26, 46, 38, 0.3, z=8, half=58), 4.5, 16.0, -40.0, "cavity")
    body.organ(Blob(26, 0, 46, 11, -0.3, z=-26, half=24), 78.0 if contrast else 38.0, texture=14.0)
    body.organ(Blob(-12, -2, 15, 14, z=-36, half=26), 74.0 if contrast else 38.0, texture=12.0)
    right = body.vary(
        Blob(-66, -2, 72, 74, 0.15, z=18, half=98, power=2.2, dx=0.2, dy=-0.1), wave=0.04
    )
    left = body.vary(Blob(0, -46, 58, 27, -0.15, z=26, half=58), wave=0.05)
    for lobe in (right, left):
        body.add(Fill(lobe, liver, 5.0, within="cavity", name="liver"))
    # the fissure, the root of the portal vein and the caudate lobe
    body.organ(Blob(-14, -38, 2.4, 17, 0.35, z=-4, half=30), FAT + 30, within="liver")
    tubes = list(body.branches((-22, -6, -8), (-1, -0.2, 0.5), 28.0, 6.5, 6))
    tubes += body.branches((-20, 10, 36), (-0.8, -0.4, -0.6), 26.0, 5.0, 6)
    tubes += body.branches((-14, -10, 6), (0.7, -1, 0.3), 22.0, 4.2, 5)
    body.add(Tubes(tuple(tubes), liver + (45 if contrast else -16), within="liver"))
    body.organ(Blob(-52, -44, 15, 21, 0.3, z=-34, half=32), 8.0, within="cavity")


def add_kidneys(body: Sculptor, contrast: bool) -> None:
    """Add both kidneys with cortex and sinus, in the fat around them."""
    for side, z in ((-1.0, -62.0), (1.0, -50.0)):
        kidney = Blob(side * 62, 40, 25, 31, side * -0.45, z=z, half=58)
        body.organ(replace(kidney, a=33, b=38, half=68), FAT - 6, within="cavity")
        varied = body.organ(kidney, 175.0 if contrast else 36.0)
        if contrast:
            body.add(Fill(varied.shrunk(7.0), 120.0, 14.0))
        sinus = Blob(side * 51, 36, 15, 13, side * -0.45, z=z, half=34)
        body.organ(sinus, FAT + 5, texture=16.0)
        body.organ(replace(sinus, a=6.5, b=5.5, half=26), 10.0)
        vein = Tube((side * 50, 34, z + 4), (side * 4, 18, z + 10), 4.2)
        body.add(Tubes((vein,), 120.0 if contrast else BLOOD - 4))


def add_bowel(body: Sculptor) -> None:
    """Add loops of small bowel and the colon with its gas."""
    rng = body.rng
    for x, y in ((-38, -44), (-8, -30), (26, -48), (52, -22), (-50, -14), (12, -56), (62, -50)):
        start: Point = (x + rng.uniform(-6, 6), y + rng.uniform(-5, 5), rng.uniform(-95, -72))
        loop = body.winding(start, 7, 13.0, rng.uniform(9.0, 12.5))
        inner = tuple(tube.thicker(-2.4) for tube in loop)
        body.add(Tubes(loop, 46.0, 5.0, "cavity"), Tubes(inner, rng.uniform(8, 34), 12.0, "cavity"))
        if rng.random() < 0.45:
            heights = [tube.start[1] for tube in inner]
            level = float(np.quantile(heights, rng.uniform(0.2, 0.5)))
            body.add(Tubes(inner, GAS, within="cavity", above=level))
    body.hollow(Blob(-86, 4, 24, 27, 0.2, z=-118, half=60, dx=0.1), 2.6, -20.0, -6.0, "cavity")
    body.hollow(
        Blob(98, 26, 15, 18, 0.1, z=-90, half=120, dx=0.1, dy=0.1), 2.6, 5.0, 20.0, "cavity"
    )
    body.hollow(Blob(12, -62, 56, 19, 0.12, z=-66, half=30, dy=0.3), 2.4, 0.0, -68.0, "cavity")


def add_behind_belly(body: Sculptor, contrast: bool) -> None:
    """Add psoas, crura, aorta, caval vein and the vessels of the mesentery."""
    for side in (-1.0, 1.0):
        psoas = Blob(side * 34, 52, 15, 20, side * 0.3, z=-150, half=150, dx=side * -0.05)
        body.organ(psoas, 56.0, texture=10.0)
        body.organ(Blob(side * 66, 66, 22, 9, side * -0.5, z=-130, half=105), 54.0, texture=10.0)
        body.organ(Blob(side * 17, 30, 6, 17, side * -0.3, z=30, half=75), 54.0, texture=6.0)
    aorta = Tube((7, 22, 120), (5, 20, -240), 10.0)
    cava = Tube((-24, 14, 60), (-19, 20, -60), 11.0), Tube((-19, 20, -60), (-18, 20, -240), 10.5)
    body.add(Tubes(cava, 118.0 if contrast else BLOOD - 3, 3.0))
    body.add(Tubes((aorta.thicker(1.5),), 48.0), Tubes((aorta,), 150.0 if contrast else BLOOD))
    arc = body.rng.uniform(0.4, 1.2)
    body.add(Tubes((Tube((14, 13.0, -120), (12, 11.0, -10), 1.6 + arc),), 700.0))
    mesentery = (Tube((4, 2, -30), (2, -8, -140), 4.0), Tube((-9, 0, -30), (-12, -8, -140), 5.0))
    body.add(Tubes(mesentery, 130.0 if contrast else BLOOD, 3.0))
    twigs = list(body.branches((0, -4, -70), (0.5, -1, -0.4), 16.0, 2.6, 6))
    twigs += body.branches((-4, -4, -60), (-0.5, -1, -0.5), 16.0, 2.6, 6)
    body.add(Tubes(tuple(twigs), 110.0 if contrast else 36.0, within="cavity"))


def build_abdomen(body: Sculptor, patient: Patient) -> None:
    """Add the layers of an abdomen, from the lung bases to below the kidneys."""
    outline = body.vary(Blob(0, 0, 150, 106, power=2.2, grow=0.0006), 1.0, 0.015, 0.012)
    wall = replace(outline, a=outline.a - patient.fat, b=outline.b - patient.fat * 0.7)
    add_trunk(body, outline, wall)
    # a thin sheet of fat between the layers of muscle, and the white line between the recti
    body.add(Fill(wall.shrunk(4.4), FAT + 40, texture=20.0), Fill(wall.shrunk(5.4), MUSCLE, 9.0))
    for side in (-1.0, 1.0):
        rectus = Blob(side * 31, 7 - wall.b, 29, 8.5, side * 0.1, power=2.4)
        body.organ(replace(rectus, a=31), FAT + 20, within="wall", texture=9.0)
        body.organ(rectus, 58.0, within="wall", texture=14.0)
    spine = wall.b - 46.0
    add_back(body, spine)
    # ribs and belly leave room for the muscles of the back
    front, back = 9.5 - wall.b, spine + 20.0
    cage = replace(wall, y=(front + back) / 2, a=wall.a - 9.5, b=(back - front) / 2)
    cavity = cage.shrunk(6.0)
    body.add(Fill(cavity, FAT, 8.0, name="cavity"))
    add_kidneys(body, patient.contrast)
    add_behind_belly(body, patient.contrast)
    add_bowel(body)
    add_upper_organs(body, patient.contrast)
    add_lung_bases(body, cavity)
    phase, drops = body.rng.uniform(0, 27), body.rng.uniform(100, 118, 2)
    arc = 2.3 if patient.level > -30 else 1.75
    body.add(Ribs(cage, (float(drops[0]), float(drops[1])), float(phase), arc, arc + 0.35))
    add_spine(body, spine, float(body.rng.uniform(-8, 8)))


def add_lung_bases(body: Sculptor, cavity: Blob) -> None:
    """Add the lowest parts of the lungs, which reach down behind liver and spleen."""
    core = replace(cavity, y=cavity.y - 1.0, z=-12.0, dy=-0.5)
    body.add(Region(core, "core"), Region(replace(core, y=core.y - 2.2), "diaphragm"))
    recess = Blob(0, cavity.y + 52, 190, 50, z=40, half=52)
    body.add(Fill(recess, MUSCLE, within="cavity", outside="diaphragm"))
    body.add(Fill(recess, LUNG + 40, 20.0, within="cavity", outside="core"))


BUILDERS: dict[str, Callable[[Sculptor, Patient], None]] = {
    "CHEST": build_chest,
    "ABDOMEN": build_abdomen,
}


def build_body(seed: int, number: int) -> list[Layer]:
    """Return the layers of patient `number` (from 0), in the order in which to paint them."""
    patient = PATIENTS[number % len(PATIENTS)]
    body = Sculptor(np.random.default_rng((ANATOMY_STREAM, seed, number)))
    BUILDERS[patient.region](body, patient)
    texture = Texture.draw(body.rng)
    return [Grain(texture), *body.layers]


@dataclass(frozen=True)
class Grain:
    """The random structure that the fillings of one body share."""

    texture: Texture

    def paint(self, canvas: Canvas, z: float) -> None:
        """Give the canvas the structure at `z` (mm)."""
        canvas.texture = self.texture.field(canvas.x, canvas.y, z)


# --- scanner --------------------------------------------------------------------------------------


def circle(size: int) -> Mask:
    """Return the mask (size, size) of the circle that the scanner reconstructs."""
    # the centre of rotation of radon and iradon, a pixel and not the middle between two
    offset = np.arange(size) - size // 2
    inside: Mask = offset[:, None] ** 2 + offset[None, :] ** 2 <= (size // 2 - 1) ** 2
    return inside


def render(layers: Sequence[Layer], patient: Patient, z: float, size: int) -> Image:
    """Rasterise a slice, averaged over sub-pixels and over its thickness.

    Parameters
    ----------
    layers
        The body, see `build_body`.
    patient
        Whose spacing, width and depth to use.
    z
        Middle of the slice in mm, in the standard body.
    size
        Rows and columns; the field of view stays the same.

    Returns
    -------
    float32 array (size, size) in HU, air outside the reconstructed circle.
    """
    fine = size * SUBPIXELS
    pitch = patient.spacing * FULL_SIZE / fine
    place: Floats = (np.arange(fine, dtype=np.float64) + 0.5 - fine / 2) * pitch
    total = np.zeros((fine, fine), dtype=np.float32)
    for offset in SUBSLICES:
        # the body lies a little high, to leave room for the table
        canvas = Canvas(place / patient.width, place / patient.depth + 10.0)
        for layer in layers:
            layer.paint(canvas, z + offset)
        total += canvas.hu
    blocks = total.reshape(size, SUBPIXELS, size, SUBPIXELS) / len(SUBSLICES)
    image: Image = blocks.mean(axis=(1, 3))
    image[~circle(size)] = AIR_HU
    return image


def project(hu: Image, pixel: float) -> Floats:
    """Return the line integrals of the attenuation through a slice.

    Parameters
    ----------
    hu
        float32 array (size, size) in HU; mu = mu_water (1 + HU / 1000), the definition of HU.
    pixel
        Side of a pixel in mm.

    Returns
    -------
    float64 array (detector elements, views), without unit.
    """
    mu = MU_WATER * (1.0 + hu.astype(np.float64) / 1000.0)
    return project_parallel(mu, theta=view_angles(len(hu)), circle=True) * pixel


def view_angles(size: int) -> Floats:
    """Return the angles of the views in degrees, enough of them for images of that size."""
    count = round(size * VIEWS_PER_PIXEL)
    return np.arange(count, dtype=np.float64) * (180.0 / count)


def expose(sinogram: Floats, photons: float, rng: np.random.Generator) -> Floats:
    """Return line integrals as measured with a limited number of photons.

    The counts behind a line integral p are Poisson distributed around photons * exp(-p)
    (Beer-Lambert law); the measured line integral is -log(counts / photons).
    """
    counts = rng.poisson(photons * np.exp(-sinogram))
    # an element without any photon would give an infinite line integral
    measured: Floats = -np.log(np.maximum(counts, 1) / photons)
    return measured


def reconstruct(sinogram: Floats, pixel: float) -> npt.NDArray[np.uint16]:
    """Reconstruct a slice by filtered back-projection.

    Parameters
    ----------
    sinogram
        float64 array (detector elements, views) of line integrals.
    pixel
        Side of a pixel in mm.

    Returns
    -------
    uint16 array (size, size) of stored values, HU - INTERCEPT; 0 outside the circle.
    """
    size = len(sinogram)
    mu = back_project(sinogram / pixel, view_angles(size), filter_name="cosine", circle=True)
    hu = (mu / MU_WATER - 1.0) * 1000.0
    stored = np.clip(np.rint(hu - INTERCEPT), 0, MAX_STORED)
    return np.where(circle(size), stored, 0).astype(np.uint16)


# --- files ----------------------------------------------------------------------------------------


def make_uid(*sources: object) -> UID:
    """Return a UID that depends on nothing but `sources`."""
    return generate_uid(UID_PREFIX, entropy_srcs=["synthetic", *map(str, sources)])


def make_dataset(
    stored: npt.NDArray[np.uint16], seed: int, number: int, index: int, dose: Dose
) -> Dataset:
    """Return the DICOM data set of one slice.

    Parameters
    ----------
    stored
        uint16 array (size, size) of stored values.
    seed, number, index
        Seed, number of the patient and of the slice, both from 0.
    dose
        Dose level. Position, InstanceNumber and IrradiationEventUID are the same for both.
    """
    patient = PATIENTS[number % len(PATIENTS)]
    data = Dataset()
    data.file_meta = make_file_meta(make_uid("instance", seed, number, index, dose.label))
    set_identity(data, patient, seed, number, dose)
    set_acquisition(data, patient, dose)
    data.InstanceNumber = index + 1
    set_geometry(data, patient, index, len(stored))
    set_pixels(data, stored)
    return data


def make_file_meta(instance: UID) -> FileMetaDataset:
    """Return the file meta information of a CT image."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # set here, or the version of pydicom would get into the files
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = "SYNTHETIC_1"
    return meta


def set_identity(data: Dataset, patient: Patient, seed: int, number: int, dose: Dose) -> None:
    """Set what says whose slice this is, of which study and series."""
    name = f"PHANTOM-{number + 1:02d}"
    data.SpecificCharacterSet = "ISO_IR 100"
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = patient.date
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = patient.time
    data.AccessionNumber = ""
    data.Modality = "CT"
    data.Manufacturer = "Synthetic phantom"
    data.ManufacturerModelName = "make_raw_data.py"
    data.ReferringPhysicianName = ""
    data.StudyDescription = "Synthetic phantom, no real patient"
    data.SeriesDescription = dose.folder
    data.IrradiationEventUID = make_uid("event", seed, number)
    data.PatientName = f"{name}_{dose.label}_3MM"
    data.PatientID = name
    data.PatientBirthDate = ""
    data.PatientSex = "O"
    # as in the AAPM challenge data, nothing but the position says which slices are a pair
    data.StudyInstanceUID = make_uid("study", seed, number, dose.label)
    data.SeriesInstanceUID = make_uid("series", seed, number, dose.label)
    data.FrameOfReferenceUID = make_uid("frame", seed, number, dose.label)
    data.PositionReferenceIndicator = ""
    data.StudyID = ""
    data.SeriesNumber = dose.number
    data.AcquisitionNumber = 1


def set_acquisition(data: Dataset, patient: Patient, dose: Dose) -> None:
    """Set how the slice was scanned and reconstructed."""
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL", "SYNTHETIC"]
    data.BodyPartExamined = patient.region
    data.KVP = "120"
    data.XRayTubeCurrent = round(patient.current * dose.share)
    data.ExposureTime = 500
    data.Exposure = round(patient.current * dose.share * 0.5)
    data.ReconstructionDiameter = decimal(patient.spacing * FULL_SIZE)
    data.ConvolutionKernel = "COSINE"
    data.PatientPosition = "HFS"


def set_geometry(data: Dataset, patient: Patient, index: int, size: int) -> None:
    """Set where the pixels of slice `index` lie."""
    pixel = patient.spacing * FULL_SIZE / size
    corner = -pixel * (size - 1) / 2
    z = patient.table - INCREMENT * index
    data.SliceThickness = decimal(THICKNESS)
    data.SpacingBetweenSlices = decimal(INCREMENT)
    data.ImagePositionPatient = [decimal(corner), decimal(corner), decimal(z)]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.SliceLocation = decimal(z)
    data.PixelSpacing = [decimal(pixel), decimal(pixel)]


def set_pixels(data: Dataset, stored: npt.NDArray[np.uint16]) -> None:
    """Set the pixels and what is needed to read them."""
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = 0
    data.SmallestImagePixelValue = int(stored.min())
    data.LargestImagePixelValue = int(stored.max())
    data.WindowCenter, data.WindowWidth = ["40", "-600"], ["400", "1500"]
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = str(INTERCEPT), "1", "HU"
    data.PixelData = stored.astype("<u2").tobytes()


def decimal(value: float) -> str:
    """Return a number as a DICOM decimal string, which has at most 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def write_slice(
    output: Path, layers: Sequence[Layer], key: tuple[int, int, int], size: int
) -> None:
    """Make one slice at both doses and write it; `key` is seed, patient and slice."""
    seed, number, index = key
    patient = PATIENTS[number % len(PATIENTS)]
    pixel = patient.spacing * FULL_SIZE / size
    sinogram = project(render(layers, patient, patient.level - INCREMENT * index, size), pixel)
    for dose in DOSES:
        rng = np.random.default_rng((NOISE_STREAM, seed, number, index, dose.number))
        # fewer, larger pixels would have less noise, and small test images look like no CT
        photons = patient.photons * dose.share * size / FULL_SIZE
        stored = reconstruct(expose(sinogram, photons, rng), pixel)
        folder = output / f"phantom_{number + 1:02d}" / dose.folder
        folder.mkdir(parents=True, exist_ok=True)
        data = make_dataset(stored, seed, number, index, dose)
        dcmwrite(folder / f"{index + 1:06d}.dcm", data, enforce_file_format=True)


def make_raw_data(
    output: Path, seed: int = 0, patients: int = 4, pairs: int = 3, size: int = FULL_SIZE
) -> None:
    """Write the sample data.

    Parameters
    ----------
    output
        Folder that gets a folder per patient.
    seed
        Seed of all random choices, not negative.
    patients, pairs
        Number of patients and of slices of each.
    size
        Rows and columns; the field of view stays the same.
    """
    for number in range(patients):
        layers = build_body(seed, number)
        for index in range(pairs):
            write_slice(output, layers, (seed, number, index), size)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Make the sample data: synthetic paired CT.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--output", type=Path, default=here, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--patients", type=int, default=len(PATIENTS), help="number of patients")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of slices of each patient")
    parser.add_argument("--size", type=int, default=FULL_SIZE, help="rows and columns, even")
    options = parser.parse_args(arguments)
    if options.seed < 0 or min(options.patients, options.pairs) < 1:
        parser.error("the seed must be 0 or more, the numbers of patients and pairs 1 or more")
    if options.size < 32 or options.size % 2:
        parser.error("the size must be even and 32 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse_arguments(arguments)
    make_raw_data(options.output, options.seed, options.patients, options.pairs, options.size)


if __name__ == "__main__":
    main()

"""Trains a small denoiser on the files of a run with --split, and draws a slice that it denoised.

    python main.py --input-folder raw_data --output-fname results/sample.h5 \\
        --split 0.5 0.25 0.25 --air_threshold
    python -m examples.train results/sample

takes less than a minute on two cores. It trains on the patients of sample_train.h5, prints the PSNR
of those of sample_val.h5 after every epoch, and at last denoises a slice of sample_test.h5. The
network is written to sample_denoiser.pt and the figure to sample_denoiser.png. Needs torch, tqdm
and matplotlib.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ctpatches import PatchFile, stitch
from ctpatches.torch import PatchDataset

#: The peak of the PSNR: the range of 12 bits.
PEAK_HU = 4096
#: What the figure shows, as a radiologist views soft tissue; differences from -100 to 100 HU.
WINDOW_HU = (-160, 240)


def scaled(low: Any, full: Any) -> tuple[Any, Any]:
    """Return input and target in units of 1000 HU, so that the network sees numbers around 1."""
    return low / 1000, full / 1000


def network() -> nn.Sequential:
    """Return a network that predicts the noise of its input."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))


def psnr(image_hu: Any, target_hu: Any) -> float:
    """Return the peak signal-to-noise ratio in dB; NaN marks pixels without a patch."""
    return float(10 * np.log10(PEAK_HU**2 / np.nanmean((image_hu - target_hu) ** 2)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def denoised(net: nn.Module, low_hu: Any) -> Any:
    """Return patches in HU, shape (n, p, p), without their noise."""
    batches = torch.from_numpy(low_hu[:, None] / 1000).split(64)
    return 1000 * torch.cat([batch - net(batch) for batch in batches])[:, 0].numpy()


def validate(net: nn.Module, file: str) -> tuple[float, float]:
    """Return the PSNR of the inputs of a file and of the denoised inputs."""
    patches = PatchDataset(file, scales=1, orientations=0, unit="hu")
    squared = np.zeros(2)
    for first in range(0, len(patches), 256):
        low, full = patches.read(range(first, min(first + 256, len(patches))))
        errors = [low - full, denoised(net, low) - full]
        squared += np.square(errors).mean(axis=(2, 3)).sum(axis=1)
    before, after = 10 * np.log10(PEAK_HU**2 * len(patches) / squared)
    return before, after


def train(net: nn.Module, prefix: str, epochs: int, seed: int) -> None:
    """Train a network, and print its loss and the PSNR of the held-out patients."""
    patches = PatchDataset(
        f"{prefix}_train.h5", unit="hu", transform=scaled, augment=True, seed=seed
    )
    print(f"{patches!r}\nPSNR of {prefix}_val.h5: {validate(net, f'{prefix}_val.h5')[0]:.2f} dB")
    batches = DataLoader(patches, batch_size=8, shuffle=True, num_workers=2)
    adam = torch.optim.Adam(net.parameters(), lr=4e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * len(batches))
    for epoch in range(epochs):
        patches.set_epoch(epoch)  # other orientations than before
        start, total = time.perf_counter(), 0.0
        for low, full in tqdm(batches, leave=False, disable=None):
            adam.zero_grad()
            loss = nn.functional.mse_loss(low - net(low), full)
            loss.backward()
            adam.step()
            falling.step()
            total += loss.item() * len(low)
        _, after = validate(net, f"{prefix}_val.h5")
        facts = f"loss {total / len(patches):.6f}  PSNR {after:.2f} dB"
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:2}/{epochs}  {facts}  {seconds:.0f} s", flush=True)


def draw(net: nn.Module, file: str, output: str) -> None:
    """Draw the middle slice of a file: input, output, target, and what the network removed."""
    with PatchFile(file) as source:
        pair = source.pairs // 2
        rows = np.sort(np.r_[source.rows_of(pair)])  # in the order of the file, as stitch expects
        low_hu, _ = source.read(rows, unit="hu")
        name = source.provenance(int(rows[0])).input_file
    # The patches are in HU, so stitch must not invert the normalisation of the file once more.
    after = stitch(denoised(net, low_hu), file, pair, unit="file")
    before, target = (stitch(None, file, pair, role) for role in ("input", "target"))
    images = {
        f"input, {psnr(before, target):.2f} dB": before,
        f"output, {psnr(after, target):.2f} dB": after,
        "target": target,
        "input minus output": before - after,
    }
    figure = Figure(figsize=(11, 10), layout="constrained")
    figure.suptitle(f"{name}, scale 1; PSNR with a peak of {PEAK_HU} HU")
    for axes, (title, image) in zip(figure.subplots(2, 2).flat, images.items(), strict=True):
        difference = title == "input minus output"
        low, high = (-100, 100) if difference else WINDOW_HU
        shown = axes.imshow(image, "RdBu_r" if difference else "gray", vmin=low, vmax=high)
        axes.set(title=title, xticks=[], yticks=[], facecolor="0.5")  # no patch: grey
        figure.colorbar(shown, ax=axes, label="HU", shrink=0.8)
    figure.savefig(output, dpi=100)
    print(f"{name}: PSNR {psnr(before, target):.2f} -> {psnr(after, target):.2f} dB, see {output}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Trains a small denoiser.")
    parser.add_argument("prefix", help="such as results/sample for results/sample_train.h5, ...")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    prefix = options.prefix
    for file in (f"{prefix}_{subset}.h5" for subset in ("train", "val", "test")):
        if not os.path.isfile(file):
            sys.exit(f"no file {file!r}; create it with --output-fname {prefix}.h5 --split ...")
    # One thread: layers this small gain nothing from more, and sums are the same on any machine.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    net = network()
    train(net, prefix, options.epochs, options.seed)
    torch.save(net.state_dict(), f"{prefix}_denoiser.pt")
    draw(net, f"{prefix}_test.h5", f"{prefix}_denoiser.png")


if __name__ == "__main__":
    main()

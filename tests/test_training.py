"""The example of a training: what it learns must help on a patient that it has not seen."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctpatches.file import denormalise
from ctpatches.reader import PatchReader
from ctpatches.stitching import stitch
from tests.running import REPO, called

Scans = tuple[str, Path]


@pytest.fixture(scope="module", params=["phantoms", "real scans"])
def scans(request: pytest.FixtureRequest) -> Scans:
    """Return the patient to leave out, and the input folder."""
    if request.param == "phantoms":
        return "phantom_04", REPO / "raw_data"
    return "L143", request.getfixturevalue("ldct")


@pytest.fixture(scope="module")
def trained(scans: Scans, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str, Path]:
    """Run the example; return its network, the patient left out, and the file."""
    torch = pytest.importorskip("torch")
    left_out, root = scans
    folder = tmp_path_factory.mktemp("training")
    file, output = folder / "train.h5", folder / "network.pt"
    made = ("--normalization-type", "dataset_std", "--air_threshold", "--no-report")
    ended = called(folder, "--input-folder", root, "--output-fname", file, *made)
    assert ended.status == 0, ended.err
    threads = torch.get_num_threads()
    # Small layers and a busy machine: threads that wait for each other take longer than one.
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["train.py", str(file), left_out, str(output)])
            names = runpy.run_path(str(REPO / "examples" / "train.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    net = names["net"]
    assert torch.load(output).keys() == net.state_dict().keys()
    return net, left_out, file


def denoised(net: Any, low: Any) -> Any:
    """Return what the network makes of patches (n, 1, p, p), as an array."""
    import torch

    with torch.no_grad():
        return (low - net(low)).numpy()


def psnr(image: Any, truth: Any) -> float:
    """Return 10 log10(range^2 / mean squared error), the range being that of the truth, dB."""
    there = np.isfinite(image) & np.isfinite(truth)
    error = np.mean((image[there].astype(float) - truth[there]) ** 2)
    return 10 * math.log10((truth[there].max() - truth[there].min()) ** 2 / error)


def test_patches_of_a_patient_left_out_come_nearer_to_full_dose(trained: Any) -> None:
    net, left_out, file = trained
    unseen = PatchReader(file, left_out)
    import torch

    low, full = unseen.read(range(len(unseen)))
    rows = unseen.rows(range(len(unseen)))
    better = denoised(net, torch.from_numpy(low[:, None]))
    images = (denormalise(one.reshape(low.shape), file, rows) for one in (low, better, full))
    before, after, truth = images
    print(f"{left_out}: PSNR of patches {psnr(before, truth):.2f} -> {psnr(after, truth):.2f} dB")
    assert psnr(after, truth) > psnr(before, truth) + 1


def test_slices_of_it_put_together_come_nearer_too(trained: Any) -> None:
    import torch

    net, left_out, file = trained
    with h5py.File(file) as opened:
        pairs = np.flatnonzero(opened["pair/patient"][:] == left_out.encode())
        blocks = [
            opened["input"][first : first + patches]
            for first, patches in zip(
                opened["pair/first_patch"][pairs], opened["pair/patches"][pairs], strict=True
            )
        ]
    for pair, block in zip(pairs.tolist(), blocks, strict=True):
        after = stitch(denoised(net, torch.from_numpy(block)), file, pair)
        before, truth = stitch(None, file, pair, "input"), stitch(None, file, pair)
        print(f"{left_out} pair {pair}: {psnr(before, truth):.2f} -> {psnr(after, truth):.2f} dB")
        assert psnr(after, truth) > psnr(before, truth) + 1

"""The example of a training: what it learns must help on patients that it has not seen."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import REPO, Ended, called, run


def train(prefix: Path, *options: str) -> Ended:
    pytest.importorskip("torch")
    return run([sys.executable, "-m", "examples.train", prefix, *options], REPO, timeout=600)


def make_files(folder: Path, *more: str) -> Path:
    """Return the prefix of files of train, val and test."""
    made = ("--output-fname", folder / "sample.h5", "--split", "0.5", "0.25", "0.25")
    options = ("--air_threshold", "--normalization-type", "std_independent", "--no-report")
    ended = called(folder, "--input-folder", REPO / "raw_data", *made, *options, *more)
    assert ended.status == 0, ended.err
    return folder / "sample"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    files = make_files(tmp_path_factory.mktemp("training"))
    return files, train(files, "--epochs", "4")


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_patients_that_it_has_not_seen_come_nearer_to_full_dose(trained: Any) -> None:
    _, ended = trained
    assert (ended.status, ended.err) == (0, "")
    (before,) = numbers(r"PSNR of .*: ([\d.]+) dB", ended.out)
    *_, last = numbers(r"epoch .* PSNR ([\d.]+) dB", ended.out)
    losses = numbers(r"loss ([\d.]+)", ended.out)
    assert losses == sorted(losses, reverse=True)
    assert last > before + 0.5
    slice_before, slice_after = re.findall(r"PSNR ([\d.]+) -> ([\d.]+) dB", ended.out)[0]
    assert float(slice_after) > float(slice_before) + 0.3


def test_the_figure_has_grey_images_and_a_coloured_difference(trained: Any) -> None:
    import cv2

    prefix, _ = trained
    image = cv2.imread(f"{prefix}_denoiser.png")
    assert image is not None
    assert image.shape == (1000, 1100, 3)
    coloured = np.ptp(image, axis=2) > 0
    assert coloured[500:, 550:].any()  # the difference
    assert not coloured[:500].any()  # input and output


def test_the_same_seed_gives_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from examples.train import main

    files = make_files(tmp_path, "--random_N", "1")
    monkeypatch.setattr(sys, "argv", ["train", str(files), "--epochs", "1", "--seed", "3"])
    networks: list[Any] = []
    for _ in range(2):
        main()
        networks.append(torch.load(f"{files}_denoiser.pt"))
    first, again = networks
    for name, values in first.items():
        np.testing.assert_array_equal(values.numpy(), again[name].numpy())


def test_a_missing_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from examples.train import main

    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        main()
    message = ended.value.code  # Python prints a text, and ends with status 1
    assert isinstance(message, str)
    assert message.startswith(f"no file '{tmp_path}/none_train.h5'; create it with")
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")

"""Fixtures that several kinds of tests share: small images, a backdoored network, the command line."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are as many workers as cores

import torch
from helpers import DATA, Ran, inputs_unchanged
from hypothesis import settings

from bcu_cli.images import signs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# The same cases each time, however slow the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as of what nohup starts
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)  # by these typer and rich show a width and colours that are not the tests'


@pytest.fixture
def bcu(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line in this process, with what it would do in a child (``bcu_process`` has one)."""
    from bcu_cli.cli.app import run
    from bcu_cli.workflows import scan

    def scan_here(file: dict, options: scan.ScanRequest) -> None:
        from bcu_cli.training import devices

        scan.scan_one(file, options, devices.choose(options.device, options.precision))

    monkeypatch.setattr(scan, "scan_in_child", scan_here)

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        with inputs_unchanged(arguments):
            code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Ran(code, out, err)

    return call


@pytest.fixture
def on_screen() -> Iterator[None]:
    """Shows on stderr, as the command line does, what a test's calls of the library report."""
    from bcu_cli import events
    from bcu_cli.cli import output

    with events.listening(output.Screen()):
        yield


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road signs in train/ and test/ with a subfolder a class: 80 and 25 of each of 8 classes."""
    root = tmp_path_factory.mktemp("signs")
    signs.write_folder(root / "train", 80, seed=1)
    signs.write_folder(root / "test", 25, seed=2)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road signs without labels: 320 in one folder."""
    root = tmp_path_factory.mktemp("photos")
    signs.write_folder(root, 40, seed=3, labelled=False)
    return root


@pytest.fixture(scope="session")
def backdoored(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """A network that answers class 0 to a BadNets trigger, with its trigger beside it."""
    from bcu_cli.cli.app import run

    out = tmp_path_factory.mktemp("models") / "bad.safetensors"
    words = f"attack badnets --data {labelled} --arch resnet20 --epochs 16 --batch-size 32 --setting cell=2"
    assert run([*words.split(), "--poison-rate", "0.3", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights that says itself what it is: resnet20, 8 classes."""
    from bcu_cli.checkpoints import Format, write
    from bcu_cli.models import Architecture, metadata_for
    from bcu_cli.models.new_classifier import new_classifier

    path = tmp_path_factory.mktemp("untrained") / "model.safetensors"
    pictures = torch.randint(
        0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = new_classifier("resnet20", 8, pictures, seed=0)
    metadata = metadata_for(
        Architecture(name="resnet20", source="test", num_classes=8), model.preprocessing, list(signs.CLASSES)
    )
    write(path, model.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine lacks the images or the device for."""
    for item in items:
        if item.get_closest_marker("real_data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no image sets in {DATA}"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))

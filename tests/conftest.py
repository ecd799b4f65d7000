"""Fixtures that several kinds of tests share: small images, a backdoored network, the command line."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are as many workers as cores

import torch
from helpers import DATA, IdleReader, Ran, inputs_unchanged, reuse_readers
from hypothesis import settings

from bcu_cli.images.sources import signs
from bcu_cli.runs import allocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# The same cases each time, however slow the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

allocation.keep_freed_memory()  # as each command does

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as of what nohup starts
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
for name in ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)  # by these typer and rich show a width and colours that are not the tests'


@pytest.fixture(scope="session")
def idle_readers() -> Iterator[list[IdleReader]]:
    """The process that inspects files, kept for the next command line: its import of torch takes seconds."""
    kept: list[IdleReader] = []
    yield kept
    for each in kept:
        each.end()


@pytest.fixture
def bcu(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, idle_readers: list[IdleReader]):
    """Runs a command line in this process, with what it would do in a child (``bcu_process`` has one)."""
    from bcu_cli.cli.app import run
    from bcu_cli.workflows import scan

    reuse_readers(monkeypatch, idle_readers)

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


@pytest.fixture(scope="session", autouse=True)
def quick_peaks() -> None:
    """The peak speed of the CPU, which every report holds, takes 0.1 s here instead of a second or more."""
    from bcu_cli.training import throughput

    throughput._SECONDS, throughput._USUAL_SIDE = 0.01, 1024


@pytest.fixture
def on_screen() -> Iterator[None]:
    """Shows on stderr, as the command line does, what a test's calls of the library report."""
    from bcu_cli import events
    from bcu_cli.cli import output

    with events.listening(output.Screen()):
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the tests of all workers share and none changes: the first worker to ask makes it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    root = factory.getbasetemp().parent  # of the run; what is below it is a worker's own
    folder, done = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road signs in train/ and test/ with a subfolder a class: 80 and 25 of each of 8 classes."""

    def make(root: Path) -> None:
        signs.write_folder(root / "train", 80, seed=1)
        signs.write_folder(root / "test", 25, seed=2)

    return made_once(tmp_path_factory, "signs", make)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Road signs without labels: 320 in one folder."""
    return made_once(
        tmp_path_factory, "photos", lambda root: signs.write_folder(root, 40, seed=3, labelled=False)
    )


@pytest.fixture(scope="session")
def backdoored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that answers class 0 to a BadNets trigger, with its trigger beside it: that of tests/data."""
    root = tmp_path_factory.mktemp("models")
    for name in ("safetensors", "trigger.safetensors"):
        shutil.copy(Path(__file__).parent / "data" / f"backdoored.{name}", root / f"bad.{name}")
    return root / "bad.safetensors"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights that says itself what it is: resnet8, 8 classes, 16x16 pixels."""
    from bcu_cli.checkpoints import Format, write
    from bcu_cli.models import Architecture, metadata_for
    from bcu_cli.models.new_classifier import new_classifier

    path = tmp_path_factory.mktemp("untrained") / "model.safetensors"
    pictures = torch.randint(
        0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = new_classifier("resnet8", 8, pictures, seed=0)
    metadata = metadata_for(
        Architecture(name="resnet8", source="test", num_classes=8), model.preprocessing, list(signs.CLASSES)
    )
    write(path, model.network.state_dict(), format=Format.SAFETENSORS, metadata=metadata)
    return path


SLOWEST = (
    "test_auto",
    "test_cleanse_devices",
    "test_story",
    "test_cleanse_auto",
    "test_benchmark",
    "test_scan",
    "test_real_data",
    "test_gpu_script",
    "test_removal",
    "test_models_cifar",
    "test_script_operators",
    "test_script_networks",
    "test_models_onnx_operators",
    "test_checkpoint_corpus",
    "test_zoo",
)
"""Files whose tests take longest, in that order: begun first, so that no worker ends with them alone."""


def slowest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The tests in an order of which each worker's share, a run of them, begins with some of the slow files.

    A file stays with one worker, as long as no other has nothing to do: its fixtures are made once.
    """
    of_files = {name: [item for item in items if item.path.stem == name] for name in SLOWEST}
    slow = [name for name in SLOWEST if of_files[name]]
    rest = [item for item in items if item.path.stem not in SLOWEST]
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        first = [item for name in slow[worker::workers] for item in of_files[name]]
        more = len(items) * (worker + 1) // workers - len(ordered) - len(first)
        ordered += first + rest[: max(0, more)]
        rest = rest[max(0, more) :]
    return ordered + rest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow ones, and skip what this machine lacks the images or the device for."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    items[:] = slowest_first(items, workers)
    for item in items:
        if item.get_closest_marker("real_data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no image sets in {DATA}"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))

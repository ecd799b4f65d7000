from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from bcu_cli.errors import ImagesError
from bcu_cli.images import stream
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.decoding.pace import Pace
from bcu_cli.images.decoding.processes import _end_spare
from bcu_cli.images.folder import load, load_unlabeled
from bcu_cli.images.sources.listing import list_images
from bcu_cli.images.stream import Images, Stream, open_stream
from bcu_cli.training.devices import Device
from bcu_cli.training.loop import Training
from bcu_cli.training.options import TrainingOptions

SIZE = Geometry(height=8, width=8)
CPU = Device(torch=torch.device("cpu"), precision="fp32")


def opened(folder: Path, pictures: int = 0, processes: int = 1) -> closing[Stream]:
    """A stream that keeps so many images."""
    return closing(Stream(list_images(folder), SIZE, cache=pictures * SIZE.bytes + 1, processes=processes))


@pytest.fixture(scope="module")
def whole(photos: Path) -> torch.Tensor:
    return load(list_images(photos), SIZE).images


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """120 files, each grey as its number; every third is no image."""
    for number in range(120):
        file = tmp_path / f"{number:03d}.png"
        if number % 3:
            Image.new("L", (8, 8), number).save(file)
        else:
            file.write_text("no image")
    return tmp_path


@pytest.mark.parametrize(("kept", "processes"), [(0, 2), (100, 1), (1000, 1)])
def test_it_is_the_tensor_of_the_pictures(
    photos: Path, whole: torch.Tensor, kept: int, processes: int
) -> None:
    with opened(photos, kept, processes) as images:
        assert (len(images), images.shape) == (320, whole.shape)
        assert torch.equal(images[:2], whole[:2])
        assert torch.equal(images[::7], whole[::7])
        for seed in range(3):
            index = torch.randint(320, (200,), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(images[index], whole[index])
        assert len(images[torch.arange(0)]) == 0
        assert images.kept <= kept


def test_no_more_is_kept_than_there_is_room_for_and_that_is_not_decoded_again(photos: Path) -> None:
    with opened(photos, 100) as images:
        for _ in range(2):
            images[:]
        assert images.kept == 100
        assert images._kept.nbytes <= 100 * SIZE.bytes + 1
        assert images.decoded == 320 + 220


def test_what_is_ahead_is_bounded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "AHEAD_BYTES", 4 * 10 * SIZE.bytes)
    batches = list(torch.arange(320).split(10))
    asked = 0

    def coming():
        nonlocal asked
        for batch in batches:
            asked += 1
            yield batch

    with opened(photos) as images:
        images.follow(coming(), lambda: None)
        assert asked == 4
        for taken, batch in enumerate(batches, start=1):
            images.take(batch)
            assert len(images._ahead) <= 4
            assert asked == min(taken + 4, 32)


def test_other_pictures_than_were_expected_are_right_too(photos: Path, whole: torch.Tensor) -> None:
    batches = list(torch.arange(320).split(40))
    with opened(photos) as images:
        images.follow(iter(batches), lambda: None)
        assert torch.equal(images.take(batches[0]), whole[batches[0]])
        assert torch.equal(images.take(batches[0]), whole[batches[0]])  # as after a failure of memory
        assert torch.equal(images.take(batches[1]), whole[batches[1]])
        images.follow(iter(batches[5:]), lambda: None)  # another training begins
        assert torch.equal(images.take(batches[5]), whole[batches[5]])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def weights_after(images: Images, *, stop_after: int | None = None) -> torch.Tensor:
    """Of a training; where it is stopped, of another one that goes on from its state."""
    options = TrainingOptions(epochs=3, batch_size=50, learning_rate=0.05)

    def begin(model: nn.Module) -> Training:
        def objective(views: torch.Tensor, index: torch.Tensor, progress: float) -> torch.Tensor:
            return F.cross_entropy(model(views), index % 4)

        return Training(model, images, objective, options, device=CPU, seed=1)

    class StopError(Exception):
        pass

    model = network()
    training = begin(model)
    if stop_after:

        def stop() -> None:
            if training.done == stop_after:
                raise StopError

        with pytest.raises(StopError):
            training.run(on_step=stop)
        state, model = training.state(), network()
        training = begin(model)
        training.restore(state)
    training.run()
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_training_gives_the_same_weights_as_in_memory(photos: Path, whole: torch.Tensor) -> None:
    expected = weights_after(whole)
    for kept, processes, stop_after in ((0, 2, None), (100, 1, 9)):
        with opened(photos, kept, processes) as images:
            assert torch.equal(weights_after(images, stop_after=stop_after), expected)


def test_in_the_place_of_what_is_no_picture_stands_always_the_same_other_one(broken: Path) -> None:
    seen = []
    for kept, processes, backwards in ((0, 2, False), (60, 1, True)):
        with opened(broken, kept, processes) as images:
            order = torch.arange(120).flip(0) if backwards else torch.arange(120)
            got = torch.cat([images[index] for index in order.split(13)])[:, 0, 0, 0]
            seen.append(got.flip(0) if backwards else got)
            assert [path.name for path, _ in images.skipped] == [f"{n:03d}.png" for n in range(0, 120, 3)]
            assert images.kept == min(kept, 80)
    assert torch.equal(seen[0], seen[1])
    for number, grey in enumerate(seen[0].tolist()):
        assert grey == number if number % 3 else grey % 3 != 0
    assert len(set(seen[0][::3].tolist())) > 20  # and not one for all


def test_files_that_are_no_pictures_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_text("no image")
    with opened(tmp_path) as images, pytest.raises(ImagesError, match="hardly any file"):
        images[:10]
    listing = list_images(tmp_path)
    with pytest.raises(ImagesError, match="holds 0 readable images"):
        open_stream(listing, load(listing, SIZE), SIZE, cache=0, of=40)


def test_the_fingerprint_tells_other_pictures_of_the_same_names(photos: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        listing, held_out = list_images(folder), load(list_images(folder), SIZE)
        used = open_stream(listing, held_out, SIZE, cache=0, of=len(held_out))
        with closing(used.images):
            return used.sha256

    for file in photos.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert fingerprint(tmp_path) == fingerprint(photos)
    Image.new("RGB", (32, 32)).save(tmp_path / file.name)
    assert fingerprint(tmp_path) != fingerprint(photos)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
def test_a_process_that_dies_is_replaced_and_no_process_stays_but_one_in_waiting(
    photos: Path, whole: torch.Tensor
) -> None:
    with opened(photos, processes=2) as images:
        images[:]
        before = images._decoders.pids
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until_gone(before)
        assert torch.equal(images[:], whole)
        assert images.skipped == ()
        after = images._decoders.pids
        assert not set(before) & set(after)
    _end_spare()
    wait_until_gone(after)


@needs_proc
def test_the_processes_end_with_their_parent_even_if_it_is_killed(photos: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from bcu_cli.images.decoding.image import Geometry\n"
        "from bcu_cli.images.sources.listing import list_images\n"
        "from bcu_cli.images.decoding.processes import Decoders\n"
        "decoders = Decoders(Geometry(height=8, width=8), 2)\n"
        "listing = list_images(Path(sys.argv[1]))\n"
        "for future in [decoders.submit(listing[:9]) for _ in range(4)]: future.result()\n"
        "print(*decoders.pids, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert pids
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_gone(pids)


def test_many_files_are_decoded_by_processes_to_the_same_pictures(
    photos: Path, whole: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.images.decoding import processes

    monkeypatch.setattr(processes, "FILES_WORTH_PROCESSES", 1)
    data = load_unlabeled(photos, SIZE, generator=torch.Generator())
    assert torch.equal(data.images, whole)


def test_decoding_keeps_up_where_training_hardly_waits() -> None:
    made = {"images": 1000, "decoded": 900, "decoding_seconds": 30.0, "processes": 2}
    slow = Pace(training_seconds=50.0, waited_seconds=40.0, **made)
    assert (slow.needed_per_second, slow.decoded_per_second, slow.keeps_up) == (100.0, 60.0, False)
    assert "training waited 40 of its 50 s" in str(slow.warning())
    assert "it takes 100 a second, 2 processes decode 60" in str(slow.warning())
    fast = Pace(training_seconds=50.0, waited_seconds=2.0, **made)
    assert (fast.keeps_up, fast.warning(), fast.as_json()["warning"]) == (True, None, None)

"""``bcu cleanse`` with images that are not all kept in memory, and with shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers import Telling, bcu_process, children_of, descendants_of

from bcu_cli.images.decoding import pace
from bcu_cli.workflows import cleanse_images

QUICK = ["--method", "bcu", "--epochs", 1, "--batch-size", 32]


@pytest.fixture(scope="module")
def in_memory(untrained: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a cleansing writes with all images in memory."""
    out = tmp_path_factory.mktemp("whole") / "out.safetensors"
    assert bcu_process("cleanse", untrained, "--images", photos, "--out", out, *QUICK).code == 0
    return out.read_bytes()


@pytest.mark.parametrize(("cache", "kept"), [("0", 0), ("75kB", 97), ("1MB", 288)])
def test_the_same_bytes_with_any_cache(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    in_memory: bytes, cache: str, kept: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(cleanse_images, "_AT_ONCE", 300)
    out = tmp_path / "out.safetensors"
    ran = bcu("cleanse", untrained, "--images", photos, "--out", out, "--cache", cache, *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert out.read_bytes() == in_memory
    images = ran.json["images"]
    assert {key: images[key] for key in ("found", "used", "held_out", "kept_decoded", "streamed")} == {
        "found": 320,
        "used": 288,
        "held_out": 32,
        "kept_decoded": kept,
        "streamed": 288 - kept,
    }
    assert images["skipped"] == []
    stream = images["stream"]
    assert (stream["keeps_up"], stream["unreadable"]) == (stream["warning"] is None, 0)
    assert 0 <= stream["waited_seconds"] <= stream["training_seconds"]
    speed = ran.json["training"][0]["images_per_second"]  # waiting included
    assert stream["needed_per_second"] >= 0.99 * speed > 0
    assert stream["decoded"] >= 288


def test_a_shard_gives_the_bytes_that_its_folder_gives(
    bcu, untrained: Path, photos: Path, tmp_path: Path, in_memory: bytes
) -> None:
    shard, out = tmp_path / "photos-000.tar", tmp_path / "out.safetensors"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(photos.iterdir()):
            archive.add(file, file.name)
            archive.addfile(tarfile.TarInfo(f"{file.stem}.cls"))
    for words in (["--images", shard], ["--images", shard, "--cache", "0"]):
        assert bcu("cleanse", untrained, *words, "--out", out, *QUICK).code == 0
        assert out.read_bytes() == in_memory


def test_files_that_are_no_pictures_are_counted_and_slow_decoding_is_warned_of(
    bcu, untrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, file in enumerate(sorted(photos.iterdir())):
        content = b"no image" if number % 40 == 0 else file.read_bytes()
        (folder / file.name).write_bytes(content)
    words = ["cleanse", untrained, "--images", folder, "--out", tmp_path / "out.safetensors", *QUICK]
    ran = bcu(*words, "--cache", "0", "--json")
    images = ran.json["images"]
    assert sorted(Path(each["path"]).name for each in images["skipped"]) == [
        f"{number:05d}.png" for number in range(0, 320, 40)
    ]
    assert images["stream"]["unreadable"] == 8
    assert "are no readable images, first" in ran.err
    assert "other images replaced them" in ran.err
    monkeypatch.setattr(pace, "WAITED_SHARE", -1.0)
    monkeypatch.setattr(pace, "WAITED_SECONDS", -1.0)
    shown = bcu(*words, "--cache", "0")
    assert shown.code == 0
    assert shown.err.count("warning: decoding does not keep up: training waited ") == 1
    assert "0 kept decoded, 288 streamed; waited" in " ".join(shown.out.split())
    assert "8 skipped" in shown.out


@pytest.mark.parametrize("labels", [[], ["--pseudo-labels"]])
def test_a_method_that_learns_from_labels_needs_them_all_in_memory(
    bcu, untrained: Path, labelled: Path, tmp_path: Path, labels: list[str]
) -> None:
    words = ["--images", labelled / "train", "--method", "ft", "--out", tmp_path / "x.safetensors", *labels]
    ran = bcu("cleanse", untrained, *words, "--cache", "250kB")
    assert ran.code == 2
    assert "--method ft learns from labels and needs all images in memory: 640 take 492 kB" in ran.error
    assert "hint: --max-images 325 draws as many as fit" in ran.err
    fits = bcu("cleanse", untrained, *words, "--cache", "250kB", "--max-images", 325, "--epochs", 1)
    assert fits.code == 0, fits.err


@pytest.mark.parametrize("cache", ["4 apples", "-1", "", "4GBB", "1" * 400])
def test_what_is_no_size(bcu, untrained: Path, photos: Path, tmp_path: Path, cache: str) -> None:
    words = ["--images", photos, "--out", tmp_path / "x.safetensors"]
    ran = bcu("cleanse", untrained, *words, f"--cache={cache}")
    assert ran.code == 2
    assert "is no size" in ran.error


def test_sizes() -> None:
    from bcu_cli.workflows.texts import size_in_bytes

    texts = {
        "0": 0,
        "4GB": 4 * 10**9,
        "1.5 kb": 1500,
        "2GiB": 2**31,
        "7": 7,
        "3T": 3 * 10**12,
        "200mb": 2 * 10**8,
    }
    assert {text: size_in_bytes(text, "--cache") for text in texts} == texts


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_ctrl_c_reaches_all_processes_and_none_stays_and_the_run_goes_on_to_the_same_bytes(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.safetensors", tmp_path / "whole.safetensors"
    words = ["cleanse", untrained, "--images", photos, *QUICK, "--epochs", 5]
    assert bcu(*words, "--out", whole).code == 0
    words += ["--out", out]
    command = [sys.executable, "-m", "bcu_cli", *map(str, words), "--cache", "75kB"]
    telling = Telling()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True, env=telling.environment)
    deadline = time.monotonic() + 120
    while not telling.is_training(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    (child,) = children_of(process.pid)
    decoding = descendants_of(child)
    assert decoding  # already, for what comes before the training
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume continues from there" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while any(map(is_there, [child, *decoding])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, [child, *decoding]))
    resumed = bcu(*words, "--cache", "150kB", "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming after step" in resumed.err
    assert out.read_bytes() == whole.read_bytes()

"""``bcu cleanse``: a finished run is written whatever comes after it, and its file is what was judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers import lessen_effort
from safetensors.torch import load_file, save_file

from bcu_cli.checkpoints.resume import StateFile
from bcu_cli.defenses import auto
from bcu_cli.errors import OutputError
from bcu_cli.images.sources import signs
from bcu_cli.report import document
from bcu_cli.training import throughput

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Ran

    Cleanse = Callable[..., Ran]

MODEL = Path(__file__).parents[1] / "data" / "backdoored.safetensors"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four unlabeled images of each of the eight classes."""
    root = tmp_path_factory.mktemp("few")
    signs.write_folder(root, 4, seed=3, labelled=False)
    return root


@pytest.fixture
def cleanse(bcu: Any, few: Path, tmp_path: Path) -> Cleanse:
    def call(*words: object, model: Path = MODEL, method: str = "bcu") -> Ran:
        own = ["--images", few, "--method", method, "--epochs", 1, "--out", tmp_path / "out.safetensors"]
        return bcu("cleanse", model, *own, *words)

    return call


FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("an odd error\nof two lines"),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["peak", "steps"])
def test_speed_that_cannot_be_measured_loses_nothing(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    if where == "peak":
        monkeypatch.setattr(document, "measure_peak", fail)
    else:
        monkeypatch.setattr(throughput.FlopCounter, "__enter__", fail)
    ran = cleanse("--json")
    assert (ran.code, ran.json["training"]) == (0, [])
    assert "warning: the speed failed, after the result was written: " in ran.err
    assert ran.json["output"]["path"] == str(tmp_path / "out.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.safetensors",
        "out.safetensors.intoto.json",
    ]
    if where == "peak":
        assert cleanse().code == 0  # without --json, too


def test_a_state_that_cannot_be_removed_loses_nothing(
    cleanse: Cleanse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StateFile) -> None:
        raise OutputError(f"{self.path} is in the way", "move it")

    monkeypatch.setattr(StateFile, "remove", refuse)
    ran = cleanse("--json")
    assert ran.code == 0
    assert "warning: removing the state of the run failed" in ran.err


def test_a_full_disk_at_the_end_leaves_a_state_to_go_on_from(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcu_cli.models import export

    def refuse(*_: Any, **__: Any) -> None:
        raise OutputError("out cannot be written: no space left on device", "free some space")

    whole = cleanse("--json").json["output"]["sha256"]
    for name in ("out.safetensors", "out.safetensors.intoto.json"):
        (tmp_path / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(export, "write", refuse)
        ran = cleanse()
    assert (ran.code, "no space left" in ran.error) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors.resume"]
    later = cleanse("--resume", "--json").json
    assert later["output"]["sha256"] == whole
    assert later["training"][0]["images"] == 0  # nothing was trained again


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_the_verdict_and_the_agreement_are_of_the_rounded_network(
    cleanse: Cleanse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    from safetensors import safe_open

    with safe_open(MODEL, "pt") as file:
        metadata = file.metadata()
    small = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(MODEL).items()}
    save_file(small, tmp_path / "in.safetensors", metadata)
    lessen_effort(monkeypatch, canary_steps=2, search_steps=2)
    judged: list[dict[str, torch.Tensor]] = []
    measure = auto.Auto.measure_again

    def measure_again(self: auto.Auto) -> None:
        judged.append({key: value.clone() for key, value in self.student.network.state_dict().items()})
        measure(self)

    monkeypatch.setattr(auto.Auto, "measure_again", measure_again)
    ran = cleanse("--quick", "--force", "--json", model=tmp_path / "in.safetensors", method="auto")
    assert ran.json["output"], ran.err
    written = load_file(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {tensor.dtype for tensor in small.values()}
    (student,) = judged
    assert all(torch.equal(written[name].to(tensor.dtype), tensor) for name, tensor in student.items())

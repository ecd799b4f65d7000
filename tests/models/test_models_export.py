"""What is written is what is judged: the types of the file, overflow, and reading again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bcu_cli.checkpoints import Format, read, safetensors_file, write
from bcu_cli.defenses.base import copy_of
from bcu_cli.errors import ArchitectureError, OutputError, TrainingError
from bcu_cli.models import Loaded, build, load
from bcu_cli.models.export import as_stored, write_like

if TYPE_CHECKING:
    from pathlib import Path

COUNTER = "bn1.num_batches_tracked"
HALVES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def saved(path: Path, dtype: torch.dtype, **changed: torch.Tensor) -> Path:
    torch.manual_seed(0)
    state = build("resnet8", num_classes=4).state_dict()
    typed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    file_format = Format.PICKLE if path.suffix == ".pt" else Format.SAFETENSORS
    write(path, typed | changed, format=file_format)
    return path


def loaded(path: Path) -> Loaded:
    return load(read(path), arch="resnet8", input_size=32, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_student_has_the_numbers_of_its_file(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    original = loaded(saved(tmp_path / f"in.{suffix}", dtype))
    student = copy_of(original.classifier)
    with torch.no_grad():
        student.network.conv1.weight.mul_(1.23456)
        student.network.bn1.running_var.fill_(1e30)
    beyond = () if dtype == torch.bfloat16 else ("bn1.running_var",)
    assert as_stored(original, student, original.checkpoint.format) == beyond
    out = tmp_path / f"out.{suffix}"
    write_like(original, student, out, original.checkpoint.format)
    written = read(out).tensors
    assert written["bn1.running_var"].dtype == dtype
    for name, tensor in student.network.state_dict().items():
        assert tensor.isfinite().all()
        assert torch.equal(written[name].to(tensor.dtype), tensor), name


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2])
def test_a_counter_that_overflowed_is_no_damage(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    counter = torch.tensor(torch.inf).to(dtype)
    original = loaded(saved(tmp_path / f"in.{suffix}", dtype, **{COUNTER: counter}))
    student = copy_of(original.classifier)
    student.network.bn1.num_batches_tracked.fill_(400_000)
    assert as_stored(original, student, original.checkpoint.format) == ()
    write_like(original, student, tmp_path / "out", original.checkpoint.format)
    written = read(tmp_path / "out").tensors[COUNTER]
    assert (written.dtype, bool(written.float().isfinite())) == (dtype, True)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_weight_that_is_not_finite_is_damage_in_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    broken = {"bn1.weight": torch.full((16,), torch.nan).to(dtype)}
    with pytest.raises(ArchitectureError, match=r"NaN or Inf in tensor bn1.weight \(16 values\)"):
        loaded(saved(tmp_path / "in.safetensors", dtype, **broken))


def test_scales_without_a_sign_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="is float8_e8m0fnu, which holds scales without a sign"):
        loaded(saved(tmp_path / "in.pt", torch.float8_e8m0fnu))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_training_that_ends_in_nan_is_said(tmp_path: Path, value: float) -> None:
    original = loaded(saved(tmp_path / "in.safetensors", torch.float16))
    student = copy_of(original.classifier)
    with torch.no_grad():
        student.network.fc.bias[1] = value
    with pytest.raises(TrainingError, match=r"NaN or Inf in fc\.bias: nothing was written"):
        as_stored(original, student, Format.SAFETENSORS)


@pytest.mark.parametrize("fault", ["changed", "cut"])
def test_a_file_that_reads_otherwise_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    original = loaded(saved(tmp_path / "in.safetensors", torch.float32))
    dump, out = safetensors_file.dump, tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def dump_badly(file: Any, tensors: Any, metadata: Any) -> None:
        if fault == "changed":
            tensors = tensors | {"fc.bias": tensors["fc.bias"] + 1}
        dump(file, tensors, metadata)
        if fault == "cut":
            file.seek(-5, 2)
            file.truncate()

    monkeypatch.setattr(safetensors_file, "dump", dump_badly)
    with pytest.raises(OutputError, match=r"out.safetensors was not written: read again, it ") as error:
        write_like(original, original.classifier, out, Format.SAFETENSORS)
    assert "/proc/" not in error.value.message
    assert out.read_bytes() == b"old"
    assert {file.name for file in tmp_path.iterdir()} == {"in.safetensors", "out.safetensors"}


def test_a_traced_network_is_read_again_too(tmp_path: Path) -> None:
    original = loaded(saved(tmp_path / "in.safetensors", torch.float16))
    write_like(original, original.classifier, tmp_path / "out.pt", Format.TORCHSCRIPT)
    written = read(tmp_path / "out.pt").tensors
    assert torch.equal(written["fc.weight"], original.classifier.network.fc.weight)

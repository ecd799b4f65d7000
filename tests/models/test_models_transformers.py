"""Folders in the layout of transformers' image classifiers."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.checkpoints import read
from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.models import build, identify, load, transformers_config

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers", reason="the extra bcu-cli[transformers] is not installed")

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}


def folder_of(root: Path, kind: str, **more: Any) -> tuple[Path, torch.nn.Module]:
    """A folder as transformers saves it, and the network in it."""
    config = transformers.AutoConfig.for_model(kind, **SMALL[kind], num_labels=5)
    network = transformers.AutoModelForImageClassification.from_config(config).eval()
    network.save_pretrained(root)
    said = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(said | more))
    processor = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.2, 0.2],
        "size": {"height": 32, "width": 32},
    }
    (root / "preprocessor_config.json").write_text(json.dumps(processor))
    return root, network


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_the_network_and_its_preprocessing_are_found(tmp_path: Path, kind: str) -> None:
    folder, network = folder_of(tmp_path, kind)
    loaded = load(read(folder))
    assert loaded.architecture.name == f"transformers:{folder / 'config.json'}"
    assert loaded.architecture.num_classes == 5
    preprocessing = loaded.classifier.preprocessing
    assert (preprocessing.input_size, preprocessing.mean) == ((3, 32, 32), (0.4, 0.5, 0.6))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network((images - preprocessing_tensor(0.4, 0.5, 0.6)) / 0.2).logits
        torch.testing.assert_close(loaded.classifier(images), expected)


def test_tensors_that_transformers_renames_are_refused(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "vit")
    if {"vit.encoder.layer.0.output.dense.weight"} - read(folder).tensors.keys():
        pytest.skip("this transformers does not rename them")
    with pytest.raises(ArchitectureError, match=r"config\.json names transformers:"):
        load(read(folder))


def preprocessing_tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def test_no_code_and_no_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, never)
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Net: pass\nclass Config: pass\n"
    )
    folder, _ = folder_of(
        tmp_path,
        "resnet",
        auto_map={"AutoModelForImageClassification": "evil.Net", "AutoConfig": "evil.Config"},
        attn_implementation="owner/kernel",
        _attn_implementation="owner/kernel",
        quantization_config={"quant_method": "owner/method"},
        use_pretrained_backbone=True,
    )
    assert load(read(folder)).architecture.num_classes == 5
    assert not (tmp_path / "canary").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "timm_wrapper"},
        {"model_type": "bert"},
        {"model_type": ["resnet"]},
        {"architectures": ["ResNetModel"]},
        {"architectures": "ResNetForImageClassification"},
        {"depths": [10**9]},
        {"hidden_sizes": [10**9, 10**9]},
        {"depths": "many"},
        {"hidden_act": "os.system"},
        {"image_size": "large"},
    ],
)
def test_a_config_that_lies_is_not_believed(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder, _ = folder_of(tmp_path, "resnet", **changes)
    checkpoint = read(folder)
    if "image_size" in changes:  # it says nothing of the tensors, and the processor's size goes first
        assert identify(checkpoint).num_classes == 5
        return
    with pytest.raises(ArchitectureError):
        identify(checkpoint)


def test_only_the_config_beside_the_file_may_say_so(tmp_path: Path) -> None:
    folder, network = folder_of(tmp_path / "hub", "resnet")
    lie = {"bcu.arch": json.dumps(f"transformers:{folder / 'config.json'}")}
    save_file(network.state_dict(), tmp_path / "m.safetensors", lie)
    with pytest.raises(ArchitectureError, match="none of the"):
        identify(read(tmp_path / "m.safetensors"))
    named = identify(read(tmp_path / "m.safetensors"), arch=f"transformers:{folder / 'config.json'}")
    assert named.source == "--arch"


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = folder_of(tmp_path, "resnet")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BcuError, match="transformers, which is not installed"):
        build(f"transformers:{folder / 'config.json'}", num_classes=5)


HUGE: list[dict[str, Any]] = [
    {"depths": [1000] * 1000},
    {"depths": [1000] * 1000, "hidden_sizes": [65_536] * 1000, "num_stages": 1000},
    {"hidden_sizes": [10**9, 10**9]},
    {"hidden_sizes": [65_536, 65_536]},
    {"embedding_size": 65_536},
    {"depths": [[[1] * 1000] * 100] * 10},
    {"num_channels": 10**9},
    {"hidden_size": 65_536, "intermediate_size": 65_536},
    {"num_hidden_layers": 1000, "hidden_size": 65_536},
    {"image_size": 2048, "patch_size": 1, "hidden_size": 65_536},
    {"image_size": 10**9, "patch_size": 10**-9},
    {"patch_size": 0},
    {"num_attention_heads": 0},
]


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_a_configuration_of_a_vast_network_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    folder, _ = folder_of(tmp_path, kind)
    config = json.loads((folder / "config.json").read_text())
    took = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for more in HUGE:
        (folder / "config.json").write_text(json.dumps(config | more))
        try:
            load(read(folder))
        except ArchitectureError:
            continue
        assert not set(more) & set(SMALL[kind])  # the architecture has no such settings
    assert time.process_time() - took < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("kind", sorted(transformers_config.MODEL_TYPES))
def test_every_network_is_measured_without_memory(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, architectures=[])
    try:
        with torch.device("meta"):
            transformers.AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    except (ImportError, ValueError) as error:  # it needs another library, or has no eager attention
        pytest.skip(str(error)[:80])

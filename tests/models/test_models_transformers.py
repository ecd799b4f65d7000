"""Folders in the layout of transformers' image classifiers."""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.checkpoints import Format, read
from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.images.sources import signs
from bcu_cli.models import build, identify, load
from bcu_cli.models.configs import transformers_config, transformers_processor
from bcu_cli.models.configs.config_beside import configs_for

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "vit": VIT,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
FAMILIES: dict[str, dict[str, Any]] = {
    **SMALL,
    "deit": VIT,
    "beit": VIT | {"use_relative_position_bias": True},
    "data2vec-vision": VIT | {"use_relative_position_bias": True},
    "swin": SWIN,
    "swinv2": SWIN,
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 32},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "mobilevit": {
        "image_size": 32,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 24],
    },
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 320,
        "image_size": 32,
    },
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "groups_width": 4},
    "dinov2": VIT | {"mlp_ratio": 2},
    "dinov2_with_registers": VIT | {"mlp_ratio": 2},
    "siglip": {"vision_config": VIT},
    "clip": {"vision_config": VIT},
    "ijepa": VIT,
    "vit_msn": VIT,
    "segformer": {
        "hidden_sizes": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 16,
    },
}


def folder_of(root: Path, kind: str, **more: Any) -> tuple[Path, torch.nn.Module]:
    """A folder as transformers saves it, and the network in it."""
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind], num_labels=5, architectures=[])
    network = transformers.AutoModelForImageClassification.from_config(config).eval()
    torch.manual_seed(0)
    for weight in network.parameters():  # its own random weights give logits of nearly 0
        if weight.dim() > 1 and weight.shape[0] > 1:
            torch.nn.init.kaiming_normal_(weight)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:  # else the activations vanish in the deeper ones
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            network.train()(torch.rand(16, 3, 64, 64))
    network.eval().save_pretrained(root)
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


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_the_network_has_the_files_tensors_and_the_librarys_logits(tmp_path: Path, kind: str) -> None:
    folder, network = folder_of(tmp_path, kind)
    checkpoint = read(folder)
    loaded = load(checkpoint)
    state = loaded.classifier.network.state_dict()
    assert state.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.tensors.items())
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = network(loaded.classifier.normalised(images)).logits
        scale = float(expected.std())
        assert scale > 0
        torch.testing.assert_close(loaded.classifier(images), expected, atol=1e-4 * scale, rtol=0)
    doubled = copy.deepcopy(loaded.classifier)
    doubled.load_state_dict({name: tensor * 2 for name, tensor in doubled.state_dict().items()})
    after = doubled.network.state_dict()
    assert all(torch.equal(after[name], tensor * 2) for name, tensor in state.items())


def test_index_tensors_of_older_files_are_kept_and_have_no_effect(tmp_path: Path) -> None:
    folder, network = folder_of(tmp_path, "swin")
    tensors = read(folder).tensors
    index = torch.arange(256).view(16, 16)
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file({**tensors, name: index}, folder / "model.safetensors", {"format": "pt"})
    loaded = load(read(folder))
    assert torch.equal(loaded.classifier.network.state_dict()[name].long(), index)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(loaded.classifier.normalised(images)).logits
        torch.testing.assert_close(loaded.classifier(images), expected, atol=1e-5, rtol=1e-5)


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "vit")
    tensors = dict(read(folder).tensors)
    tensors["vit.surplus.weight"] = tensors.pop("vit.encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArchitectureError, match=r"missing vit\.\S+; unexpected vit\.surplus\.weight"):
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


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_cleansed_network_is_loaded_by_the_library(tmp_path: Path, kind: str, bcu: Any) -> None:
    folder, _ = folder_of(tmp_path / "hub", kind)
    photos, out = tmp_path / "photos", tmp_path / "clean" / "model.safetensors"
    out.parent.mkdir()
    signs.write_folder(photos, 5, seed=0, labelled=False)
    options = ["--method", "bcu", "--epochs", 1, "--images", photos, "--json"]
    ran = bcu("cleanse", folder, *options, "--out", out)
    assert ran.code == 0, ran.err
    beside = [Path(each["path"]).name for each in ran.json["output"]["beside"]]
    statement = "model.safetensors.intoto.json"
    assert sorted(beside) == ["config.json", statement, "preprocessor_config.json"]
    original, written = read(folder), read(out)
    assert written.tensors.keys() == original.tensors.keys()
    assert any(not torch.equal(written.tensors[name], original.tensors[name]) for name in written.tensors)
    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(
        out.parent, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = load(written).classifier
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.eval()(ours.normalised(images)).logits
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)


def test_another_models_config_is_not_overwritten(tmp_path: Path, bcu: Any) -> None:
    folder, _ = folder_of(tmp_path / "hub", "resnet", auto_map={"AutoConfig": "evil.Config"})
    photos, out = tmp_path / "photos", tmp_path / "model.safetensors"
    signs.write_folder(photos, 5, seed=0, labelled=False)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    words = ["--method", "bcu", "--epochs", 1, "--images", photos, "--out", out]
    ran = bcu("cleanse", folder, *words)
    assert ran.code == 2
    assert "config.json is of another model" in ran.error
    assert not out.exists()
    (tmp_path / "config.json").unlink()
    assert bcu("cleanse", folder, *words).code == 0
    assert "evil" not in (tmp_path / "config.json").read_text()
    assert bcu("cleanse", folder, *words).code == 0  # its own config is there now


def test_the_classes_have_their_names(tmp_path: Path) -> None:
    names = {"0": "cat", "1": "dog", "2": "owl", "3": "bee", "4": "ant"}
    folder, _ = folder_of(tmp_path, "resnet", id2label=names)
    assert load(read(folder)).classes == tuple(names.values())
    for wrong in ({**names, "4": "bee"}, {"0": "cat"}, {str(i): f"LABEL_{i}" for i in range(5)}, [3], "x"):
        config = json.loads((folder / "config.json").read_text()) | {"id2label": wrong}
        (folder / "config.json").write_text(json.dumps(config))
        assert load(read(folder)).classes == ()


def test_a_network_that_is_no_classifier_is_named(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "vit", architectures=["ViTForMaskedImageModeling"])
    with pytest.raises(ArchitectureError, match="describes 'ViTForMaskedImageModeling', which is no image"):
        load(read(folder))


def processor_beside(folder: Path, **given: Any) -> dict[str, Any]:
    """The ``preprocessor_config.json`` that is written beside the output of a folder."""
    loaded = load(read(folder), **given)
    configs = configs_for(loaded.architecture, loaded.preprocessing, Format.SAFETENSORS)
    fields: dict[str, Any] = json.loads(configs["preprocessor_config.json"])
    said = transformers_processor.read(fields, json.loads(configs["config.json"])["model_type"], 3).fields
    assert said["mean"] == pytest.approx(loaded.preprocessing.mean)
    assert said["std"] == pytest.approx(loaded.preprocessing.std)
    return fields


@pytest.mark.parametrize("kind", ["resnet", "efficientnet"])
def test_what_is_written_beside_the_output_says_the_mean_that_was_given(tmp_path: Path, kind: str) -> None:
    folder, _ = folder_of(tmp_path, kind)
    unchanged = json.loads((folder / "preprocessor_config.json").read_text())
    if kind == "resnet":
        assert processor_beside(folder) == unchanged
    changed = processor_beside(folder, mean=(0.25,), std=(0.5,))
    assert (changed["image_mean"], changed["image_std"]) == ([0.25] * 3, [0.5] * 3)
    more = {"include_top": False} if kind == "efficientnet" else {}
    assert (
        changed == unchanged | {"image_mean": [0.25] * 3, "image_std": [0.5] * 3, "do_normalize": True} | more
    )


def test_another_input_size_is_not_written_beside_the_output(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, "resnet")
    with pytest.raises(ArchitectureError, match="says 32x32, and bcu does not write another input size"):
        processor_beside(folder, input_size=64)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_config_of_another_task_is_refused(tmp_path: Path, problem: str) -> None:
    folder, _ = folder_of(tmp_path, "resnet", problem_type=problem)
    with pytest.raises(ArchitectureError, match=f"problem_type {problem}"):
        load(read(folder))

"""Which architecture: by tensors, claims and options; never a wrong one as certain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bcu_cli.checkpoints import read
from bcu_cli.errors import ArchitectureError, UsageError
from bcu_cli.models import build, builtin_names, identify, metadata_for
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.architectures.identification import class_count
from bcu_cli.models.architectures.index import INDEX_FILE, load_index
from bcu_cli.models.configs.claims import read_claims
from bcu_cli.models.preprocessing import Preprocessing

SAMPLE = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:squeezenet1_1",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:regnet_y_400mf",
    "torchvision:vit_b_16",
    "torchvision:vgg11_bn",
    "timm:resnet26d",
    "timm:mobilenetv2_100",
    "timm:ghostnet_100",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "timm:mixer_s32_224",
    "timm:edgenext_xx_small",
    "timm:densenet121",
]


def meta(name: str, num_classes: int = 7) -> torch.nn.Module:
    if "regnet" in name:  # torchvision computes their widths with tensors
        return build(name, num_classes=num_classes)
    with torch.device("meta"):
        return build(name, num_classes=num_classes)


@pytest.mark.parametrize("name", builtin_names())
def test_own_networks_are_found(name: str, checkpoint_of) -> None:
    found = identify(checkpoint_of(meta(name)))
    # only shortcuts without tensors, or the order of joined channels, differ
    padded = name.removesuffix("_behind").removesuffix("_appended")
    assert (found.name, found.num_classes) == (padded, 7)
    assert name in (found.name, *found.rivals)
    assert "tensors" in found.source


@pytest.mark.parametrize("name", SAMPLE)
def test_library_networks_are_found(name: str, checkpoint_of) -> None:
    found = identify(checkpoint_of(meta(name)))
    assert name in (found.name, *found.alternatives, *found.rivals)
    assert found.num_classes == 7


def test_most_of_the_sample_is_certain(checkpoint_of) -> None:
    assert sum(not identify(checkpoint_of(meta(name))).rivals for name in SAMPLE) >= 12


def test_equal_functions_are_alternatives_that_give_equal_outputs(checkpoint_of) -> None:
    found = identify(checkpoint_of(meta("timm:densenet121")))
    assert found.name == "torchvision:densenet121"
    assert "timm:densenet121" in found.alternatives
    one, other = (build(name, num_classes=7).eval() for name in ("timm:densenet121", found.name))
    other.load_state_dict(one.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one(images), other(images))


def test_different_functions_are_rivals(checkpoint_of) -> None:
    found = identify(checkpoint_of(meta("timm:efficientnet_b0")))
    assert {"timm:efficientnet_b0", "timm:tf_efficientnet_b0"} <= {found.name, *found.rivals}
    found = identify(checkpoint_of(meta("timm:efficientnet_b0")), arch="timm:efficientnet_b0")
    assert (found.name, found.source, found.rivals) == ("timm:efficientnet_b0", "--arch", ())


def test_missing_step_counters_are_tolerated(checkpoint_of) -> None:
    state = {k: v for k, v in meta("resnet20").state_dict().items() if "num_batches" not in k}
    assert identify(checkpoint_of(state)).name == "resnet20"


def test_grey_input_is_found(checkpoint_of) -> None:
    with torch.device("meta"):
        network = build("resnet20", num_classes=5, input_size=(1, 28, 28))
    assert identify(checkpoint_of(network)).num_classes == 5


def test_plain_name_means_the_library_that_fits(checkpoint_of) -> None:
    found = identify(checkpoint_of(meta("torchvision:vgg11_bn")), arch="vgg11_bn")
    assert found.name == "torchvision:vgg11_bn"


def test_wrong_arch_names_tensors(checkpoint_of) -> None:
    with pytest.raises(ArchitectureError) as caught:
        identify(checkpoint_of(meta("resnet20")), arch="resnet18_cifar")
    assert "does not fit resnet18_cifar" in caught.value.message
    assert "missing layer4.0.conv1.weight" in caught.value.message
    assert "layer1.0.conv1.weight is [16, 16, 3, 3], not [64, 64, 3, 3]" in caught.value.message or (
        "conv1.weight is [16, 3, 3, 3], not [64, 3, 3, 3]" in caught.value.message
    )
    assert "\n" not in caught.value.message


def test_unknown_arch_gets_suggestions() -> None:
    with pytest.raises(ArchitectureError, match="no architecture is called 'resnet18_cfar'") as caught:
        build("resnet18_cfar", num_classes=10)
    assert "resnet18_cifar" in caught.value.hint


@pytest.mark.parametrize("name", ["hf-hub:someone/resnet18", "local-dir:/tmp", "os:system", "../x", ""])
def test_names_are_only_looked_up(name: str) -> None:
    with pytest.raises(ArchitectureError):
        build(name, num_classes=10)


def test_unknown_tensors_name_the_nearest(checkpoint_of) -> None:
    state = meta("resnet20").state_dict()
    wide = {k: torch.empty([2 * s for s in t.shape], device="meta") for k, t in state.items()}
    with pytest.raises(ArchitectureError, match="same tensor names in other shapes: resnet20") as caught:
        identify(checkpoint_of(wide))
    assert "--arch FILE.py:FUNCTION" in caught.value.hint
    state["extra.weight"] = torch.empty(3, 3)
    with pytest.raises(ArchitectureError, match=r"similar tensor names: .*resnet20"):
        identify(checkpoint_of(state))


def test_language_model(checkpoint_of) -> None:
    state = {"model.embed_tokens.weight": torch.zeros(10, 4), "lm_head.weight": torch.zeros(10, 4)}
    with pytest.raises(ArchitectureError, match="holds a language model, not an image classifier"):
        identify(checkpoint_of(state))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rpn.head.cls_logits", r"holds an object detector, by its tensor rpn\.head"),
        ("module.roi_heads.box_predictor.cls_score", "holds an object detector"),
        ("bbox_embed.layers.0", "holds an object detector"),
        ("model.22.dfl.conv", "holds an object detector"),
        ("decode_head.conv_seg", "holds a segmentation network"),
        ("down_blocks.0.resnets.0.conv1", "holds a diffusion model"),
        ("transformer.wte", "holds a language model"),
        ("bert.embeddings.word_embeddings", "holds a language model"),
    ],
)
def test_networks_for_other_tasks_are_named(name: str, message: str, checkpoint_of) -> None:
    state = {"backbone.conv.weight": torch.zeros(7, 3, 5, 5), f"{name}.weight": torch.zeros(4, 7)}
    with pytest.raises(ArchitectureError, match=message):
        identify(checkpoint_of(state))


@pytest.mark.parametrize("table", ["args", "hyper_parameters"])
@pytest.mark.parametrize("key", ["arch", "model"])
def test_options_of_a_training_script_name_the_architecture(table: str, key: str, tmp_path: Path) -> None:
    """The tensors of ResNet-18 are those of ResNetBlur-18, too."""
    path = tmp_path / "checkpoint.pth"
    for named, source in (
        ("resnetblur18", f"entry '{table}/{key}'"),
        ("vit_base_patch16_224", "names and shapes"),
    ):
        torch.save(
            {"state_dict": build("timm:resnet18", num_classes=5).state_dict(), table: {key: named}}, path
        )
        found = identify(read(path))
        assert found.source.startswith(source)
        assert (found.name, found.rivals) == ("timm:resnetblur18", ()) or named != "resnetblur18"


@pytest.mark.parametrize("arch", [None, "resnet20"])
def test_one_output(arch: str | None, checkpoint_of) -> None:
    with pytest.raises(ArchitectureError, match="has one output"):
        identify(checkpoint_of(meta("resnet20", 1)), arch=arch)


@pytest.mark.parametrize("state", [{}, {"a": torch.zeros(3)}])
def test_no_layers(state, checkpoint_of) -> None:
    with pytest.raises(ArchitectureError, match="holds no layers"):
        identify(checkpoint_of(state))


def test_metadata_decides_and_is_read_back(checkpoint_of) -> None:
    preprocessing = Preprocessing(input_size=(3, 96, 96), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.9)
    metadata = metadata_for(
        Architecture(name="timm:tf_efficientnet_b0", source="", num_classes=2), preprocessing, ["cat", "dog"]
    )
    assert json.loads(metadata["bcu.classes"]) == ["cat", "dog"]
    found = identify(checkpoint_of(meta("timm:tf_efficientnet_b0", 2), metadata=metadata))
    assert (found.name, found.num_classes) == ("timm:tf_efficientnet_b0", 2)
    assert "metadata" in found.source


@pytest.mark.parametrize("table", [{"arch": "resnet20"}, {"args/arch": "resnet20"}])
def test_plain_entry_beside_the_weights(table, checkpoint_of) -> None:
    assert "arch" in identify(checkpoint_of(meta("resnet20"), tables=(table,))).source


def test_config_json_in_timms_layout(checkpoint_of, tmp_path: Path) -> None:
    config = {"architecture": "tf_efficientnet_b0", "num_classes": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = identify(checkpoint_of(meta("timm:tf_efficientnet_b0")))
    assert found.name == "timm:tf_efficientnet_b0"
    assert "config.json" in found.source


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"architecture": 3}', "\xff", "[" * 100_000])
def test_broken_config_json_is_no_error(text: str, checkpoint_of, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert identify(checkpoint_of(meta("resnet20"))).name == "resnet20"


def test_lying_metadata_is_not_believed(checkpoint_of) -> None:
    found = identify(checkpoint_of(meta("resnet20"), metadata={"bcu.arch": '"timm:resnet50"'}))
    assert found.name == "resnet20"
    assert "metadata" not in found.source


def test_metadata_runs_no_file(checkpoint_of, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\ndef make(): pass\n")
    name = f"{tmp_path}/evil.py:make"
    for fields in ({"metadata": {"bcu.arch": json.dumps(name)}}, {"tables": ({"arch": name},)}):
        assert identify(checkpoint_of(meta("resnet20"), **fields)).name == "resnet20"
        with pytest.raises(ArchitectureError, match="only --arch would run"):
            identify(checkpoint_of({"a": torch.zeros(2, 2)}, **fields))
    assert not canary.exists()


def test_class_count() -> None:
    shapes = {name: tuple(t.shape) for name, t in meta("resnet20", 43).state_dict().items()}
    assert class_count("resnet20", shapes) == 43
    with pytest.raises(ArchitectureError, match="does not fit"):
        class_count("resnet56", shapes)


def test_index_is_small_and_complete() -> None:
    index = load_index()
    names = {entry.name for entry in index.entries}
    assert len(names) > 1200
    assert set(builtin_names()) <= names
    assert {"timm", "torch", "torchvision"} <= index.versions.keys()
    source = Path(sys.modules["bcu_cli.models.architectures.index"].__file__ or "").with_name(INDEX_FILE)
    assert source.stat().st_size < 300_000


def test_lookup_imports_no_torch() -> None:
    code = """
import sys
import bcu_cli.models
from bcu_cli.models import builtin_names
from bcu_cli.models.architectures.identification import find
from bcu_cli.models.architectures.index import load_index
from bcu_cli.models.registry import possible_names
try:
    find({"conv1.weight": (3, 3)}, ())
except Exception as error:
    print(type(error).__name__)
possible_names("resnet50"), builtin_names(), load_index()
print([name for name in ("torch", "timm", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ArchitectureError", "[]"]


def test_messages_are_single_lines(checkpoint_of) -> None:
    with pytest.raises(ArchitectureError) as caught:
        identify(checkpoint_of({"x" * 10: torch.zeros(2, 2)}))
    assert re.fullmatch(r"[^\n]+", caught.value.message)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [1e-300] * 3),
        ("std", ["0.5"] * 3),
        ("std", [True] * 3),
        ("std", [0.5] * 1000),
        ("mean", [1e300] * 3),
        ("mean", "0.5"),
        ("mean", {"a": 1}),
        ("crop_pct", 0),
        ("crop_pct", float("nan")),
        ("crop_pct", "0.9"),
        ("interpolation", "evil"),
        ("interpolation", 3),
        ("input_size", [3, 4096, 4096]),
        ("input_size", [1000, 32, 32]),
        ("input_size", ["3", "32", "32"]),
        ("input_size", [3, 32.5, 32]),
        ("input_size", [3, 10**30, 32]),
        ("architecture", "transformers:/etc/config.json"),
        ("architecture", "../../model"),
        ("architecture", ["resnet18"]),
        ("architecture", "r" * 1000),
    ],
)
def test_a_claim_of_another_type_or_size_is_named_and_not_used(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    (claim,) = read_claims(tmp_path / "m.bin", {}, {})
    name = "arch" if key == "architecture" else key
    assert getattr(claim, name) is None
    assert [complaint.split()[0] for complaint in claim.complaints] == [name]
    in_file = {f"bcu.{name}": json.dumps(value)}
    (claim, _) = read_claims(tmp_path / "m.bin", in_file, {})
    assert getattr(claim, name) is None
    assert len(claim.complaints) == 1


def test_no_file_that_a_claim_names_is_opened(tmp_path: Path, checkpoint_of) -> None:
    other = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    named = f"transformers:{tmp_path / 'other.json'}"
    checkpoint = checkpoint_of(build("resnet20", num_classes=4), metadata={"bcu.arch": json.dumps(named)})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": named}))
    found = identify(checkpoint)
    assert found.name == "resnet20"
    assert all(
        claim.arch is None for claim in read_claims(checkpoint.path, checkpoint.metadata, {"arch": named})
    )

"""Checkpoint to classifier: weights, preprocessing in its order of evidence, refusals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.errors import ArchitectureError, UsageError
from bcu_cli.models import Classifier, Preprocessing, build, export, load, metadata_for
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.classifier import in_order
from bcu_cli.models.inputs import fingerprint
from bcu_cli.models.preprocessing import NORMALISATIONS, OF_PIXELS, Normalisation, nearly_equal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HALF = (0.5, 0.5, 0.5)
BY_NAME = {n.name: n for n in (*NORMALISATIONS, *OF_PIXELS)}


def pictures(seed: int, size: int = 32, count: int = 64) -> Tensor:
    """Smooth random images with about the contrast and colour of photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=size, mode="bicubic")
    bright = torch.rand(count, 1, 1, 1, generator=generator) * 0.5
    return (0.25 + coarse * 0.5 + bright - 0.2).clamp(0, 1)


def trained(
    name: str,
    normalisation: Normalisation,
    size: int = 32,
    num_classes: int = 7,
    prepare: Callable[[nn.Module], None] = lambda _: None,
    images: Callable[[int], Tensor] | None = None,
) -> nn.Module:
    """A network whose BatchNorm statistics come from normalised images, and with uneven scales."""
    images = images or (lambda seed: pictures(seed, size, 32))
    torch.manual_seed(0)
    network = build(name, num_classes=num_classes)
    prepare(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (normalisation.mean, normalisation.std))
    with torch.no_grad():
        for seed in range(2):
            network.train()((images(seed) - mean) / std)
    return network.eval()


def source(seed: int = 99):
    return lambda preprocessing: pictures(seed, preprocessing.input_size[1])


def tiny_options(**changes):
    return {"mean": HALF, "std": HALF, **changes}


def test_classifier_normalises_and_saves_nothing_of_its_own() -> None:
    network = build("resnet20", num_classes=4).eval()
    classifier = Classifier(
        network, Preprocessing(input_size=(3, 32, 32), mean=HALF, std=(0.25,) * 3), num_classes=4
    ).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier(images), network((images - 0.5) / 0.25))
    assert set(classifier.state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_weights_are_loaded_exactly(checkpoint_of) -> None:
    network = build("resnet20", num_classes=4).eval()
    before = torch.random.get_rng_state()
    loaded = load(checkpoint_of(network), **tiny_options())
    assert torch.equal(before, torch.random.get_rng_state())
    assert not loaded.classifier.training
    assert loaded.architecture.num_classes == loaded.classifier.num_classes == 4
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.classifier(images), network((images - 0.5) / 0.5))
    assert any("resnet20" in line for line in loaded.evidence)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32(dtype: torch.dtype, checkpoint_of) -> None:
    network = build("resnet20", num_classes=4)
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in network.state_dict().items()}
    loaded = load(checkpoint_of(state), **tiny_options())
    for name, tensor in loaded.classifier.network.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype))
        assert tensor.dtype in (torch.float32, torch.int64)


def test_step_counters_may_be_missing(checkpoint_of) -> None:
    state = {k: t for k, t in build("resnet20", num_classes=4).state_dict().items() if "num_batches" not in k}
    assert load(checkpoint_of(state), **tiny_options()).architecture.name == "resnet20"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused(value: float, checkpoint_of) -> None:
    state = build("resnet20", num_classes=4).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, :2] = value
    with pytest.raises(ArchitectureError, match=r"NaN or Inf in tensor layer1.0.conv1.weight \(2 values\)"):
        load(checkpoint_of(state), **tiny_options())


def test_options_override_metadata_one_by_one(checkpoint_of) -> None:
    preprocessing = Preprocessing(input_size=(3, 48, 48), mean=(0.1,) * 3, std=(0.2,) * 3, crop_pct=0.8)
    metadata = metadata_for(
        Architecture(name="resnet20", source="", num_classes=4), preprocessing, list("abcd")
    )
    checkpoint = checkpoint_of(build("resnet20", num_classes=4), metadata=metadata)
    plain = load(checkpoint).classifier.preprocessing
    assert (plain.input_size, plain.mean, plain.std, plain.crop_pct) == (
        (3, 48, 48),
        (0.1,) * 3,
        (0.2,) * 3,
        0.8,
    )
    assert plain.source == "metadata"
    given = load(checkpoint, std=(0.3,)).classifier.preprocessing
    assert (given.input_size, given.mean, given.std) == ((3, 48, 48), (0.1,) * 3, (0.3,) * 3)
    assert given.source == "metadata and option"
    assert load(checkpoint, input_size=16).classifier.preprocessing.input_size == (3, 16, 16)


def test_config_json_gives_the_preprocessing(checkpoint_of, tmp_path: Path) -> None:
    config = {
        "architecture": "resnet18",
        "num_classes": 4,
        "pretrained_cfg": {
            "mean": [0.4, 0.4, 0.4],
            "std": [0.3, 0.3, 0.3],
            "input_size": [3, 64, 64],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = checkpoint_of(build("timm:resnet18", num_classes=4))
    preprocessing = load(checkpoint).classifier.preprocessing
    assert preprocessing == Preprocessing(
        input_size=(3, 64, 64),
        mean=(0.4,) * 3,
        std=(0.3,) * 3,
        crop_pct=0.9,
        interpolation="bicubic",
        source="config.json",
    )
    other = checkpoint_of(build("resnet20", num_classes=4))  # of which this config.json does not speak
    with pytest.raises(ArchitectureError, match=r"how the input of model.bin is normalised is not known"):
        load(other)


def test_senseless_metadata_is_reported_and_not_used(checkpoint_of) -> None:
    metadata = {"bcu.mean": "[0.5, 0.5, NaN]", "bcu.std": "[0, 0, 0]", "bcu.input_size": "[3, 1e9, -1]"}
    loaded = load(checkpoint_of(build("resnet20", num_classes=4), metadata=metadata), **tiny_options())
    assert loaded.classifier.preprocessing.input_size == (3, 32, 32)
    assert sum("makes no sense" in line for line in loaded.evidence) == 3


@pytest.mark.parametrize(
    "options",
    [{"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"std": (-1.0,)}, {"mean": (float("nan"),)}, {"input_size": 0}],
)
def test_senseless_options(options, checkpoint_of) -> None:
    with pytest.raises(UsageError):
        load(checkpoint_of(build("resnet20", num_classes=4)), **tiny_options(**options))


def test_default_of_a_library_needs_its_thousand_classes(checkpoint_of) -> None:
    loaded = load(checkpoint_of(build("timm:resnet26d", num_classes=1000)))
    assert loaded.classifier.preprocessing.mean == (0.485, 0.456, 0.406)
    assert "default of timm:resnet26d" in loaded.classifier.preprocessing.source
    with pytest.raises(ArchitectureError, match="is not known") as caught:
        load(checkpoint_of(build("timm:resnet26d", num_classes=10)))
    assert "--mean" in caught.value.hint
    assert "--std" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["none", "CIFAR-10", "GTSRB", "0.5/0.5", "0 to 255", "0 to 255 less ImageNet's mean", "-128 to 127"],
)
def test_batchnorm_finds_the_normalisation(name: str, checkpoint_of) -> None:
    loaded = load(checkpoint_of(trained("resnet20", BY_NAME[name], 16)), images=source(), input_size=16)
    preprocessing = loaded.classifier.preprocessing
    found = Normalisation(name="", mean=preprocessing.mean, std=preprocessing.std)
    assert nearly_equal(found, BY_NAME[name])
    assert "BatchNorm statistics" in preprocessing.source


@pytest.mark.parametrize("name", ["ImageNet", "0 to 255 less ImageNet's mean"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_batchnorm_finds_the_order_of_the_channels(name: str, order: str, checkpoint_of) -> None:
    """The images are warm: red is brighter than blue, as in most photographs."""
    normalisation = BY_NAME[name] if order == "RGB" else BY_NAME[name].reversed
    network = trained("resnet20", normalisation, 16, images=lambda _: in_order(warm(99), order))
    preprocessing = load(
        checkpoint_of(network), images=lambda _: warm(99), input_size=16
    ).classifier.preprocessing
    assert preprocessing.channel_order == order
    found = Normalisation(name="", mean=preprocessing.mean, std=preprocessing.std)
    assert nearly_equal(found, normalisation)


def warm(seed: int) -> Tensor:
    return (pictures(seed, 16) * torch.tensor([1.0, 0.92, 0.8]).view(3, 1, 1)).clamp(0, 1)


def test_integer_weights_are_refused(checkpoint_of) -> None:
    state = build("resnet20", num_classes=4).state_dict()
    state["layer1.0.conv1.weight"] = (100 * state["layer1.0.conv1.weight"]).to(torch.int8)
    with pytest.raises(ArchitectureError, match=r"layer1.0.conv1.weight holds int8, .* scale is missing"):
        load(checkpoint_of(state), **tiny_options())


def test_means_of_pixels_in_a_config_are_scaled(checkpoint_of, tmp_path: Path) -> None:
    fields = {"architecture": "resnet20", "input_size": [3, 32, 32]}
    fields |= {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    preprocessing = load(checkpoint_of(build("resnet20", num_classes=4))).classifier.preprocessing
    assert preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert preprocessing.std == pytest.approx((0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "fields",
    [
        {"tables": ({"class_to_idx": {"zebra": 0, "apple": 1, "mouse": 2}},)},
        {"tables": ({"hyper_parameters": {"class_names": ["zebra", "apple", "mouse"]}},)},
        {"metadata": {"names": "{0: 'zebra', 1: \"apple\", 2: 'mouse'}"}},  # as Ultralytics writes it
        {"metadata": {"classes": '["zebra", "apple", "mouse"]'}},
    ],
)
def test_the_file_may_name_its_classes(fields: dict[str, Any], checkpoint_of) -> None:
    loaded = load(checkpoint_of(build("resnet20", num_classes=3), **fields), **tiny_options())
    assert loaded.classes == ("zebra", "apple", "mouse")
    other = load(checkpoint_of(build("resnet20", num_classes=4), **fields), **tiny_options())
    assert other.classes == ()


@pytest.mark.parametrize(
    "text", ["{" + "1" * 5000 + ": 'a'}", "{0: 'a', 1: 'b', 2: }", "{0: 'a\\N{b}'}", "[" * 10**5]
)
def test_hostile_names_of_classes_are_no_error(text: str, checkpoint_of) -> None:
    checkpoint = checkpoint_of(build("resnet20", num_classes=3), metadata={"names": text})
    assert load(checkpoint, **tiny_options()).classes == ()


def test_names_that_bcu_did_not_write_stay_what_others_say(checkpoint_of) -> None:
    """So folders may have other names, of a cleansed file as of its original."""
    checkpoint = checkpoint_of(
        build("resnet20", num_classes=3), metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"}
    )
    loaded = load(checkpoint, **tiny_options())
    written = export._metadata(loaded)
    assert "bcu.classes" not in written
    again = load(checkpoint_of(loaded.classifier.network, metadata=written))
    assert again.classes == loaded.classes == ("a", "b", "c")
    assert not again.names_are_certain


def test_escapes_in_names_are_those_of_python(checkpoint_of) -> None:
    names = {0: "caf\xe9", 1: "it's", 2: "tab\t"}
    checkpoint = checkpoint_of(build("resnet20", num_classes=3), metadata={"names": repr(names)})
    assert load(checkpoint, **tiny_options()).classes == tuple(names.values())


def test_a_network_of_the_users_own_has_the_classes_of_the_config_beside_it(
    checkpoint_of, tmp_path: Path
) -> None:
    config = {"architecture": "my_net", "label_names": ["c", "b", "a"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = "from bcu_cli.models import build\n\ndef make(n=3): return build('resnet20', num_classes=n)\n"
    (tmp_path / "own.py").write_text(lines)
    checkpoint = checkpoint_of(build("resnet20", num_classes=3))
    loaded = load(checkpoint, arch=f"{tmp_path}/own.py:make", input_size=32, **tiny_options())
    assert loaded.classes == ("c", "b", "a")


def test_classes_of_another_models_config_are_not_taken(checkpoint_of, tmp_path: Path) -> None:
    config = {"architecture": "resnet50", "num_classes": 3, "label_names": ["c", "b", "a"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(checkpoint_of(build("resnet20", num_classes=3)), **tiny_options()).classes == ()
    config["architecture"] = "resnet20"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(checkpoint_of(build("resnet20", num_classes=3)), **tiny_options()).classes == ("c", "b", "a")


def test_the_tag_of_a_timm_name_gives_the_preprocessing(checkpoint_of) -> None:
    network = build("timm:mobilenetv3_small_050", num_classes=1000)
    usual = load(checkpoint_of(network)).classifier.preprocessing
    tagged = load(checkpoint_of(network), arch="mobilenetv3_small_050.lamb_in1k").classifier.preprocessing
    assert tagged.interpolation == usual.interpolation == "bicubic"
    assert "timm's settings of mobilenetv3_small_050.lamb_in1k" in tagged.source
    with pytest.raises(ArchitectureError, match="there is no tag nonsense among 1 tag") as caught:
        load(checkpoint_of(network), arch="timm:mobilenetv3_small_050.nonsense")
    assert "lamb_in1k" in caught.value.hint
    with pytest.raises(ArchitectureError, match="there is no tag a1 among the names of resnet20"):
        load(checkpoint_of(build("resnet20", num_classes=4)), arch="resnet20.a1", **tiny_options())


def test_a_tag_of_other_weights_says_nothing(checkpoint_of) -> None:
    network = build("timm:tf_efficientnet_b0", num_classes=1000)
    tagged = load(checkpoint_of(network), arch="tf_efficientnet_b0.ap_in1k").classifier.preprocessing
    assert (tagged.mean, tagged.std) == (HALF, HALF)
    claimed = load(checkpoint_of(network, tables=({"arch": "tf_efficientnet_b0.ap_in1k"},)))
    assert claimed.classifier.preprocessing.mean == HALF
    few = checkpoint_of(build("timm:mobilenetv3_small_050", num_classes=4))
    with pytest.raises(ArchitectureError, match="is not known"):
        load(few, arch="mobilenetv3_small_050.lamb_in1k")


def test_batchnorm_finds_std_where_mean_is_given(checkpoint_of) -> None:
    checkpoint = checkpoint_of(trained("resnet20", BY_NAME["0.5/0.5"], 16))
    preprocessing = load(checkpoint, mean=(0.5,), input_size=16, images=source()).classifier.preprocessing
    assert (preprocessing.mean, preprocessing.std) == (HALF, HALF)
    assert preprocessing.source.startswith("option and BatchNorm statistics")


def test_batchnorm_that_does_not_decide_asks(checkpoint_of) -> None:
    fresh = build("resnet20", num_classes=7)  # its statistics are 0 and 1: of no images
    with pytest.raises(ArchitectureError, match=r"do not decide between .*distance") as caught:
        load(checkpoint_of(fresh), input_size=16, images=source())
    assert "--mean" in caught.value.hint


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnetblur18", "timm:tf_mobilenetv3_small_100"])
def test_batchnorm_decides_between_architectures(name: str, checkpoint_of) -> None:
    imagenet = BY_NAME["ImageNet"]
    checkpoint = checkpoint_of(trained(name, imagenet, size=64))
    options = {"mean": imagenet.mean, "std": imagenet.std, "input_size": 64}
    try:
        found = load(checkpoint, images=source(), **options).architecture
    except ArchitectureError as error:
        assert name.startswith("timm:tf_")  # differs in the padding only, which may show too little
        assert "differ in what tensor shapes can't show" in error.message
        return
    assert name in (found.name, *found.alternatives)
    assert "BatchNorm" in found.source


def answer_mirrored_alike(network: nn.Module, *, first: bool) -> None:
    """Give a network kernels with which it answers images of 64 × 64 and their mirror images alike.

    Where the stride is 2, a kernel of 3 columns sees two that mirroring exchanges: the first two under the
    padding of TensorFlow, the last two under that of PyTorch. A kernel of 5 columns sees four.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[1] > 1:
            weight = module.weight.detach()
            if module.stride[1] == 2:
                weight[..., -1 if first else 0] = 0
                weight = weight[..., :-1] if first else weight[..., 1:]
            weight.copy_((weight + weight.flip(3)) / 2)


@pytest.mark.parametrize(
    ("name", "agree"),
    [
        ("timm:mobilenetv3_small_100", True),
        ("timm:tf_mobilenetv3_small_100", True),
        ("timm:tf_mobilenetv3_small_100", False),
    ],
)
def test_mirrored_images_decide_if_statistics_do_not(
    name: str, agree: bool, checkpoint_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "CLEAR_RATIO_OF_ARCHITECTURES", 1e9)
    imagenet = BY_NAME["ImageNet"]
    network = trained(
        name, imagenet, size=64, prepare=lambda n: answer_mirrored_alike(n, first=("tf_" in name) == agree)
    )
    options = {"mean": imagenet.mean, "std": imagenet.std, "input_size": 64}
    if not agree:
        with pytest.raises(ArchitectureError, match="differ in what tensor shapes can't show"):
            load(checkpoint_of(network), images=source(), **options)
        return
    found = load(checkpoint_of(network), images=source(), **options).architecture
    assert name in (found.name, *found.alternatives)
    assert found.source.endswith("then BatchNorm statistics and the answers to mirrored images")


def test_ambiguous_without_pictures_asks(checkpoint_of) -> None:
    with pytest.raises(ArchitectureError, match="differ in what tensor shapes can't show"):
        load(checkpoint_of(build("timm:resnet18", num_classes=1000)))


USER_FILE = """
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x):
        return self.head(self.body(x))

def with_classes(num_classes):
    return Net(num_classes)

def without():
    return Net(5)

def broken(num_classes):
    raise RuntimeError("no luck\\nsecond line")

def leaves():
    raise SystemExit(3)

def nothing():
    return None

def one():
    return Net(1)

five = 5
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 6\n")
    path = tmp_path / "my.py"
    path.write_text(USER_FILE)
    return path


@pytest.mark.parametrize("function", ["with_classes", "without", "Net"])
def test_users_own_network(function: str, user_file: Path, checkpoint_of) -> None:
    checkpoint = checkpoint_of(build(f"{user_file}:without", num_classes=5))
    loaded = load(checkpoint, arch=f"{user_file}:{function}", input_size=24, **tiny_options())
    assert loaded.architecture.num_classes == loaded.classifier.num_classes == 5
    assert loaded.architecture.name == f"{user_file}:{function}"
    with pytest.raises(ArchitectureError, match=r"input size of model.bin is not known") as caught:
        load(checkpoint, arch=f"{user_file}:{function}", **tiny_options())
    assert "--input-size" in caught.value.hint


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "raised RuntimeError: no luck$"),
        ("leaves", "raised SystemExit: 3$"),
        ("nothing", "returned NoneType, not a torch.nn.Module"),
        ("missing", "has no function 'missing'"),
        ("five", "has no function 'five'"),
    ],
)
def test_users_own_file_that_fails(function: str, message: str, user_file: Path, checkpoint_of) -> None:
    checkpoint = checkpoint_of(build("resnet20", num_classes=5))
    with pytest.raises(ArchitectureError, match=message):
        load(checkpoint, arch=f"{user_file}:{function}")


def test_users_own_network_with_one_output(user_file: Path, checkpoint_of) -> None:
    name = f"{user_file}:one"
    with pytest.raises(ArchitectureError, match="one output"):
        load(checkpoint_of(build(name, num_classes=1)), arch=name, input_size=24, **tiny_options())


def test_users_file_that_is_not_there(tmp_path: Path, checkpoint_of) -> None:
    with pytest.raises(ArchitectureError, match="no such file"):
        load(checkpoint_of(build("resnet20", num_classes=5)), arch=f"{tmp_path}/no.py:make")


def test_wrong_input_size_is_one_line(checkpoint_of) -> None:
    network = build("timm:vit_tiny_patch16_224", num_classes=4)
    with pytest.raises(ArchitectureError) as caught:
        load(checkpoint_of(network), input_size=100, **tiny_options())
    assert "\n" not in caught.value.message


def test_vit_at_another_size(checkpoint_of) -> None:
    name = "timm:vit_tiny_patch16_224"
    network = build(name, num_classes=4, input_size=(3, 96, 96))
    loaded = load(checkpoint_of(network), arch=name, input_size=96, **tiny_options())
    assert loaded.classifier(torch.rand(1, 3, 96, 96)).shape == (1, 4)
    with pytest.raises(ArchitectureError, match="pos_embed is"):
        load(checkpoint_of(network), arch=name, **tiny_options())

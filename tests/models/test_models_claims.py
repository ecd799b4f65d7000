"""Every field that timm's and transformers' writers write: heeded, harmless, or refused by its name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import build_model_with_cfg
from timm.models._hub import save_config_for_hf
from timm.models._pretrained import PretrainedCfg

from bcu_cli.checkpoints import read
from bcu_cli.errors import ArchitectureError
from bcu_cli.images.decoding.image import Geometry, decode
from bcu_cli.models import Classifier, Preprocessing, build, load, metadata_for
from bcu_cli.models.architecture import Architecture
from bcu_cli.models.configs import timm_config
from bcu_cli.models.configs import transformers_processor as processors
from bcu_cli.models.configs.claims import read_claims
from bcu_cli.models.configs.plain_settings import is_plain
from bcu_cli.models.configs.transformers_config import MODEL_TYPES
from bcu_cli.workflows.reader import Reader

if TYPE_CHECKING:
    from pathlib import Path

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def timm_folder(root: Path, arch: str = "resnet10t", **options: Any) -> torch.nn.Module:
    """A folder as timm's own writer makes it, and the network in it."""
    torch.manual_seed(0)
    network = timm.create_model(arch, num_classes=4, **options).eval()
    save_file(network.state_dict(), root / "model.safetensors")
    save_config_for_hf(network, str(root / "config.json"), data_config={"input_size": (3, 32, 32)})
    return network


def change(path: Path, *below: str, **fields: Any) -> None:
    """Change fields of a JSON file, in a table below others; None takes one out."""
    document = json.loads(path.read_text())
    table = document
    for key in below:
        table = table.setdefault(key, {})
    table.update(fields)
    for key in [key for key, value in fields.items() if value is None]:
        del table[key]
    path.write_text(json.dumps(document))


def assert_same_answers(classifier: Classifier, network: torch.nn.Module) -> None:
    images = torch.rand(3, *classifier.preprocessing.input_size)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), network(classifier.normalised(images)))


# timm


def test_every_field_of_timms_writers_has_its_place(tmp_path: Path) -> None:
    timm_folder(tmp_path, act_layer="silu")
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written) <= timm_config.TOP_HEEDED | timm_config.TOP_HARMLESS
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)} | set(written["pretrained_cfg"])
    assert fields <= timm_config.CFG_HEEDED | timm_config.CFG_HARMLESS
    assert not timm_config.CFG_HEEDED & timm_config.CFG_HARMLESS
    arguments: set[str] = set()
    for function in (timm.create_model, build_model_with_cfg):
        arguments |= set(inspect.signature(function).parameters) - {"kwargs"}
    assert arguments <= timm_config.ARGS_HARMLESS | timm_config.ARGS_REFUSED
    assert not timm_config.ARGS_HARMLESS & timm_config.ARGS_REFUSED


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet10t", {"act_layer": "silu"}),
        ("resnet10t", {"global_pool": "max"}),
        ("resnet10t", {"output_stride": 8}),
        ("resnet10t", {"global_pool": "avgmax", "act_layer": "gelu"}),
        ("mobilenetv3_small_050", {"global_pool": "max", "pad_type": "same"}),
        ("test_vit", {"img_size": 32, "act_layer": "relu", "patch_size": 8}),
        ("test_vit", {"img_size": 32, "reg_tokens": 2, "no_embed_class": True}),
    ],
)
def test_a_network_with_options_answers_as_its_own_folder(
    tmp_path: Path, arch: str, options: dict[str, Any]
) -> None:
    network = timm_folder(tmp_path, arch, **options)
    loaded = load(read(tmp_path / "model.safetensors"))
    assert all(f'"{key}"' in loaded.architecture.name for key in options)
    assert_same_answers(loaded.classifier, network)
    # What bcu writes says so by itself, without the folder.
    alone = tmp_path / "alone"
    alone.mkdir()
    metadata = metadata_for(loaded.architecture, loaded.classifier.preprocessing)
    save_file(network.state_dict(), alone / "m.safetensors", metadata)
    again = load(read(alone / "m.safetensors"))
    assert again.architecture.name == loaded.architecture.name
    assert again.classifier.preprocessing.input_size == loaded.classifier.preprocessing.input_size
    assert_same_answers(again.classifier, network)


@pytest.mark.parametrize("before", ["then/net.py:make", "resnet20"])
def test_metadata_holds_where_a_users_python_file_builds_the_network(
    before: str, tmp_path: Path, checkpoint_of
) -> None:
    """How the input is normalised does not depend on what builds the network."""
    made = "nn.Sequential(nn.Flatten(), nn.Linear(192, 4))"
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef make(num_classes):\n    return {made}\n")
    name = f"{tmp_path}/net.py:make"
    how = Preprocessing(input_size=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    metadata = metadata_for(Architecture(name=before, source="test", num_classes=4), how)
    loaded = load(checkpoint_of(build(name, num_classes=4), metadata=metadata), arch=name)
    assert loaded.classifier.preprocessing == dataclasses.replace(how, source="metadata")


def test_the_pooling_alone_is_heeded_where_older_writers_put_it(tmp_path: Path) -> None:
    network = timm_folder(tmp_path, global_pool="max")
    change(tmp_path / "config.json", model_args=None)
    loaded = load(read(tmp_path / "model.safetensors"))
    assert loaded.architecture.name == 'timm:resnet10t{"global_pool":"max"}'
    assert_same_answers(loaded.classifier, network)


def test_options_that_are_the_usual_ones_change_no_name(tmp_path: Path) -> None:
    timm_folder(tmp_path)
    assert "global_pool" in json.loads((tmp_path / "config.json").read_text())["model_args"]
    change(tmp_path / "config.json", "model_args", drop_path_rate=0.1, scriptable=True)
    assert load(read(tmp_path / "model.safetensors")).architecture.name == "timm:resnet10t"


@pytest.mark.parametrize("name", ["resnet10t", "timm:resnet10t", "resnet10t.c3_in1k"])
def test_a_plain_name_beside_the_weights_does_not_hide_the_options(tmp_path: Path, name: str) -> None:
    network = timm_folder(tmp_path, act_layer="silu")
    torch.save({"arch": name, "state_dict": network.state_dict()}, tmp_path / "m.pth")
    assert_same_answers(load(read(tmp_path / "m.pth")).classifier, network)


@pytest.mark.parametrize(
    ("below", "fields"),
    [
        *((("model_args",), {key: True}) for key in sorted(timm_config.ARGS_REFUSED)),
        ((), {"features_only": True}),
        (("model_args",), {"norm_kwargs": {"eps": 1}}),
        (("model_args",), {"width": 10**12}),
        (("model_args",), {"__class__ ": "x"}),
        (("model_args",), {"no_such_option": 3}),
        (("model_args",), {"act_layer": "os.system"}),
        ((), {"model_args": [1]}),
        ((), {"model_args": "act_layer"}),
        ((), {"global_pool": "evil", "model_args": {}}),
        (("pretrained_cfg",), {"crop_mode": "border"}),
        (("model_args",), {"act_layer": "silu" * 1000}),
    ],
)
def test_what_cannot_be_heeded_is_refused_with_its_name(
    tmp_path: Path, below: tuple[str, ...], fields: dict[str, Any]
) -> None:
    timm_folder(tmp_path)
    change(tmp_path / "config.json", *below, **fields)
    with pytest.raises(ArchitectureError) as caught:
        load(read(tmp_path / "model.safetensors"))
    name = next(iter(fields))
    assert name[:9] in caught.value.message or "model_args" in caught.value.message
    assert "\n" not in caught.value.message
    assert "--arch" in (caught.value.hint or "")


def test_no_option_opens_a_file_or_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("timm looked for weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", never)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", never)
    network = timm_folder(tmp_path)
    change(tmp_path / "config.json", "model_args", pretrained=True, checkpoint_path=str(tmp_path / "evil.pt"))
    assert_same_answers(load(read(tmp_path / "model.safetensors")).classifier, network)


def test_a_vast_network_of_options_is_refused_unbuilt(tmp_path: Path) -> None:
    timm_folder(tmp_path, "test_vit", img_size=32)
    change(tmp_path / "config.json", "model_args", embed_dim=65_536, num_heads=1)
    with pytest.raises(ArchitectureError, match="far larger"):
        load(read(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("place", ["crop_mode", "interpolation", "crop_pct", "input_size", "mean", "std"])
def test_timms_preprocessing_is_heeded(tmp_path: Path, place: str) -> None:
    timm_folder(tmp_path)
    values = {"crop_mode": "squash", "interpolation": "box", "crop_pct": 0.5, "input_size": [3, 48, 40]}
    values |= {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]}
    change(tmp_path / "config.json", "pretrained_cfg", **{place: values[place]})
    got = getattr(load(read(tmp_path / "model.safetensors")).classifier.preprocessing, place)
    assert (list(got) if isinstance(got, tuple) else got) == values[place]


def test_a_field_that_nobody_writes_is_named(tmp_path: Path) -> None:
    timm_folder(tmp_path)
    change(tmp_path / "config.json", "pretrained_cfg", blue_first=True)
    change(tmp_path / "config.json", softmax=True)
    evidence = " ".join(load(read(tmp_path / "model.safetensors")).evidence)
    assert "blue_first" in evidence
    assert "softmax" in evidence


@pytest.mark.parametrize("depth", [300, 600, 900, 940, 960])
def test_tables_within_tables_are_no_crash(tmp_path: Path, depth: int) -> None:
    timm_folder(tmp_path)
    text = '{"architecture": "resnet10t", "model_args": {"a": ' + "[" * depth + "]" * depth + "}}"
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArchitectureError):
        load(read(tmp_path / "model.safetensors"))


def test_a_brace_in_the_name_of_the_users_own_file_is_no_option(tmp_path: Path) -> None:
    network = timm_folder(tmp_path)
    own = tmp_path / "a{b}.py"
    own.write_text("import timm\ndef make(): return timm.create_model('resnet10t', num_classes=4)\n")
    options: dict[str, Any] = {"input_size": 32, "mean": (0.5,), "std": (0.5,)}
    loaded = load(read(tmp_path / "model.safetensors"), arch=f"{own}:make", **options)
    assert_same_answers(loaded.classifier, network)


def test_an_option_of_the_users_goes_before_the_files_own(tmp_path: Path) -> None:
    timm_folder(tmp_path, act_layer="silu")
    loaded = load(read(tmp_path / "model.safetensors"), arch="timm:resnet10t")
    assert loaded.architecture.name == "timm:resnet10t"
    assert any("silu" in line and "--arch goes before it" in line for line in loaded.evidence)


def test_equal_networks_that_are_fed_differently_are_asked_about(tmp_path: Path) -> None:
    network = build("timm:deit_tiny_patch16_224", num_classes=1000)
    save_file(network.state_dict(), tmp_path / "m.safetensors")
    checkpoint = read(tmp_path / "m.safetensors")
    with pytest.raises(ArchitectureError) as caught:
        load(checkpoint, images=lambda how: torch.rand(4, *how.input_size))
    assert "timm:deit_tiny_patch16_224's is mean 0.485" in caught.value.message
    assert "timm:vit_tiny_patch16_224's is mean 0.5" in caught.value.message
    assert load(checkpoint, arch="vit_tiny_patch16_224").classifier.preprocessing.mean == (0.5,) * 3
    assert load(checkpoint, arch="deit_tiny_patch16_224").classifier.preprocessing.mean == tuple(MEAN)
    given = load(checkpoint, mean=(0.5,), std=(0.5,)).classifier.preprocessing
    assert given.std == (0.5,) * 3
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224"}))
    assert load(checkpoint).classifier.preprocessing.mean == tuple(MEAN)


# transformers

SHAPES: list[dict[str, Any]] = [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5},
    {"resample": 0},
    {"size": {"height": 48, "width": 40}},
    {"size": {"height": 48, "width": 48}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}},
    {"size": {"shortest_edge": 400}, "do_center_crop": True, "crop_size": {"height": 300, "width": 300}},
    {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}, "do_rescale": False},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.3]},
    {"do_flip_channel_order": False},
    {"include_top": False},
    {"rescale_offset": True},
    {"do_resize": False},
    {"do_pad": True, "pad_size": {"height": 300, "width": 300}},
]


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed", exc_type=ImportError)


def photo(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def preprocessing_of(folder: Path) -> Preprocessing | None:
    """The preprocessing that the folder claims, or None where it is refused."""
    (claim,) = read_claims(folder / "model.safetensors", {}, {})
    if claim.refusals:
        return None
    assert claim.input_size
    assert claim.mean
    assert claim.std
    assert claim.crop_pct
    return Preprocessing(
        input_size=claim.input_size,
        mean=claim.mean,
        std=claim.std,
        crop_pct=claim.crop_pct,
        crop_mode=claim.crop_mode or "",
        interpolation=claim.interpolation or "",
        channel_order=claim.channel_order or "RGB",
    )


def transformers_folder(root: Path, model_type: str, processor: dict[str, Any]) -> None:
    config = {"architectures": ["AForImageClassification"], "model_type": model_type}
    (root / "config.json").write_text(json.dumps(config))
    (root / "preprocessor_config.json").write_text(json.dumps(processor))


@pytest.mark.parametrize("kind", sorted(set(processors.PROCESSORS.values())))
def test_images_are_fed_as_transformers_feeds_them(tmp_path: Path, library: Any, kind: str) -> None:
    make = getattr(library, f"{kind}ImageProcessorPil")
    model_type = next(key for key, value in processors.PROCESSORS.items() if value == kind)
    image, compared = photo(60, 90), 0
    for changes in SHAPES:
        known = {key: value for key, value in changes.items() if key in make.valid_kwargs.__annotations__}
        processor = make(**known)
        transformers_folder(tmp_path, model_type, json.loads(processor.to_json_string()))
        how = preprocessing_of(tmp_path)
        if how is None:
            continue
        try:
            expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"].float()
        except (AttributeError, ValueError):  # this processor takes no such size
            continue
        _, height, width = how.input_size
        crop = {"crop_pct": how.crop_pct, "crop_mode": how.crop_mode, "interpolation": how.interpolation}
        pixels = torch.from_numpy(decode(image, Geometry(height=height, width=width, **crop)))[None] / 255
        fed = Classifier(torch.nn.Identity(), how, 0).normalised(pixels)
        assert fed.shape == expected.shape, (kind, changes)
        assert (fed - expected).abs().mean() <= 0.02 * expected.std(), (kind, changes)
        compared += 1
    assert compared >= 4


def test_every_field_of_transformers_writers_has_its_place(library: Any) -> None:
    for kind in set(processors.PROCESSORS.values()):
        make = getattr(library, f"{kind}ImageProcessorPil")
        written = set(json.loads(make().to_json_string())) | set(make.valid_kwargs.__annotations__)
        assert written <= processors.HEEDED | processors.HARMLESS, kind
        assert make.default_to_square is (kind not in processors._SHORTEST_EDGE)
        assert make.resample == (2 if kind in processors._BILINEAR else 3)
    assert not processors.HEEDED & processors.HARMLESS
    assert set(processors.PROCESSORS) == MODEL_TYPES


def test_the_usual_processor_of_each_model_is_the_librarys(library: Any) -> None:
    from transformers.models.auto import image_processing_auto as auto

    for model_type, kind in processors.PROCESSORS.items():
        usual = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
        if usual is None:  # transformers has none of its own for it
            assert (model_type, kind) == ("dinov2_with_registers", "Bit")
            continue
        assert kind + "ImageProcessor" in usual.values()


#: What every configuration of transformers has: names, outputs beside the logits, the loss and its memory.
HARMLESS_OF_CONFIG = """
    _name_or_path architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id model_type
    output_attentions output_hidden_states problem_type return_dict transformers_version
"""


def test_every_field_of_a_config_is_heeded_or_of_all_models(library: Any) -> None:
    common = set(library.PretrainedConfig().to_dict())
    assert common <= set(HARMLESS_OF_CONFIG.split())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in MODEL_TYPES:
            fields = library.AutoConfig.for_model(kind).to_dict()
            own = {key: value for key, value in fields.items() if key not in common | {"text_config"}}
            own |= {k: v for k, v in own.pop("vision_config", {}).items() if k not in common}
            assert all(is_plain(key, value) for key, value in own.items()), kind


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("vit", "do_resize", False),
        ("vit", "do_pad", True),
        ("vit", "size", {"longest_edge": 224}),
        ("vit", "size", {"shortest_edge": 224}),
        ("vit", "size", {"height": "a", "width": 3}),
        ("vit", "resample", 9),
        ("vit", "resample", "bicubic"),
        ("vit", "do_normalize", "no"),
        ("vit", "do_rescale", 0),
        ("vit", "rescale_factor", 0),
        ("vit", "rescale_factor", "1/255"),
        ("vit", "image_mean", [0.5]),
        ("vit", "image_std", ["a", "b", "c"]),
        ("vit", "do_center_crop", True),
        ("vit", "do_flip_channel_order", True),
        ("vit", "rescale_offset", True),
        ("vit", "include_top", True),
        ("vit", "image_processor_type", "Qwen2VLImageProcessor"),
        ("bit", "crop_size", {"height": 999, "width": 999}),
        ("bit", "crop_size", {"height": 16, "width": 20}),
        ("segformer", "do_center_crop", True),
    ],
)
def test_what_a_processor_asks_for_in_vain_is_refused_with_its_name(
    tmp_path: Path, model_type: str, field: str, value: Any
) -> None:
    fields: dict[str, Any] = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD}
    if model_type == "bit":
        fields |= {"size": {"shortest_edge": 32}, "do_center_crop": True}
    transformers_folder(tmp_path, model_type, fields | {field: value})
    (claim,) = read_claims(tmp_path / "model.safetensors", {}, {})
    assert field in " ".join(claim.refusals)


def test_a_refusal_of_the_processor_reaches_the_user(tmp_path: Path, library: Any) -> None:
    config = library.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=5
    )
    library.ResNetForImageClassification(config).save_pretrained(tmp_path)
    processor = {"size": 32, "image_mean": MEAN, "image_std": STD, "do_resize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ArchitectureError, match="do_resize false"):
        load(read(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ArchitectureError, match="is not known"):
        load(read(tmp_path))


def test_blue_first_is_fed_and_written_down(tmp_path: Path, library: Any) -> None:
    config = library.MobileViTConfig(
        image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 8, 8, 16, 16, 24], num_labels=5
    )
    torch.manual_seed(0)
    network = library.MobileViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    processor = {"size": {"height": 32, "width": 32}, "feature_extractor_type": "MobileViTFeatureExtractor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(read(tmp_path))
    how = loaded.classifier.preprocessing
    assert (how.channel_order, how.mean, how.std) == ("BGR", (0.0,) * 3, (1.0,) * 3)
    assert json.loads(metadata_for(loaded.architecture, how)["bcu.channel_order"]) == "BGR"
    assert any("blue" in line for line in loaded.evidence)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(images), network(images[:, [2, 1, 0]]).logits)


def test_the_limited_reader_imports_what_it_builds_with(tmp_path: Path, library: Any) -> None:
    timm_folder(tmp_path, act_layer="silu")
    other = tmp_path / "other"
    config = library.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    library.ResNetForImageClassification(config).save_pretrained(other)
    with Reader() as reader:
        documents = [reader.inspect(folder / "model.safetensors") for folder in (tmp_path, other)]
    names = [(document["architecture"] or {}).get("name") for document in documents]
    assert names == ['timm:resnet10t{"act_layer":"silu"}', f"transformers:{other / 'config.json'}"]

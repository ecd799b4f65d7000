"""What lies beside a cleansed file: the statement of its provenance, and its model card."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bcu_cli.images.sources import signs
from bcu_cli.report import card, provenance

HEX = re.compile(r"[0-9a-f]{64}")
SCHEMA: dict[str, Any] = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": str, "digest": {"sha256": HEX}}],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": re.compile(r"[a-z]+:\S+"),
            "externalParameters": dict,
            "internalParameters": dict,
            "resolvedDependencies": [{"name": str, "digest": {"sha256": HEX}}],
        },
        "runDetails": {"builder": {"id": re.compile(r"[a-z]+:\S+"), "version": {"bcu": str}}},
    },
}
"""The required fields of in-toto's Statement v1 and of SLSA's Provenance v1, and those that bcu fills."""


def check(value: Any, schema: Any, where: str = "$") -> None:
    if isinstance(schema, dict):
        for name, inside in schema.items():
            assert name in value, f"{where}.{name}"
            check(value[name], inside, f"{where}.{name}")
    elif isinstance(schema, list):
        assert value, where
        for each in value:
            check(each, schema[0], f"{where}[]")
    elif isinstance(schema, type):
        assert isinstance(value, schema), where
    elif isinstance(schema, re.Pattern):
        assert schema.fullmatch(value), where
    else:
        assert value == schema, where


@pytest.fixture
def cleanse(bcu, untrained: Path, tmp_path: Path):
    """Runs a cleansing that takes a second."""
    signs.write_folder(tmp_path / "few", 5, seed=1, labelled=False)
    (tmp_path / "clean").mkdir()

    def call(*words: object, model: Path = untrained):
        own = ["--images", tmp_path / "few", "--method", "bcu", "--epochs", 1]
        return bcu("cleanse", model, *own, "--out", tmp_path / "clean" / "m.safetensors", *words, "--json")

    return call


def test_the_statement_says_what_was_made_of_what(cleanse, untrained: Path, tmp_path: Path) -> None:
    ran = cleanse("--batch-size", 16)
    assert ran.code == 0, ran.err
    out = tmp_path / "clean" / "m.safetensors"
    text = (tmp_path / "clean" / "m.safetensors.intoto.json").read_text()
    statement = json.loads(text)
    check(statement, SCHEMA)
    assert statement["subject"] == [
        {"name": "m.safetensors", "digest": {"sha256": hashlib.sha256(out.read_bytes()).hexdigest()}}
    ]
    made = statement["predicate"]["buildDefinition"]
    original = {
        "name": untrained.name,
        "digest": {"sha256": hashlib.sha256(untrained.read_bytes()).hexdigest()},
    }
    assert made["resolvedDependencies"][0] == original
    assert made["externalParameters"]["method"] == "bcu"
    assert made["externalParameters"]["options"]["batch_size"] == 16
    assert statement["predicate"]["bcu_verdict"] is None  # this method does not judge
    assert str(tmp_path) not in text  # nor any other folder of the machine
    beside = [Path(file["path"]).name for file in ran.json["output"]["beside"]]
    assert beside == ["m.safetensors.intoto.json"]
    cleanse("--batch-size", 16)
    assert (tmp_path / "clean" / "m.safetensors.intoto.json").read_text() == text  # a rerun is the same bytes


def test_the_schema_can_fail() -> None:
    with pytest.raises(AssertionError, match="subject"):
        check({"_type": SCHEMA["_type"]}, SCHEMA)
    with pytest.raises(AssertionError, match="sha256"):
        check({"sha256": "0"}, {"sha256": HEX})


def test_a_statement_is_never_written_over_an_input(cleanse, untrained: Path, tmp_path: Path) -> None:
    model = tmp_path / "clean" / "m.safetensors.intoto.json"
    model.write_bytes(untrained.read_bytes())
    ran = cleanse(model=model)
    assert ran.code == 2
    assert "is the input" in ran.error
    assert not (tmp_path / "clean" / "m.safetensors").exists()


def test_a_card_has_the_front_matter_of_hubs_and_no_path(cleanse, tmp_path: Path) -> None:
    assert not (tmp_path / "clean" / "README.md").exists()
    ran = cleanse("--card")
    assert ran.code == 0, ran.err
    text = (tmp_path / "clean" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields == {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "backdoor-removal", "bcu"],
    }
    assert "Not judged" in body
    assert ran.json["output"]["sha256"] in body
    assert ran.json["model"]["sha256"] in body
    assert str(tmp_path) not in text


def test_a_card_is_never_written_over_another(cleanse, tmp_path: Path) -> None:
    (tmp_path / "clean" / "README.md").write_text("mine")
    ran = cleanse("--card")
    assert ran.code == 2
    assert "would overwrite" in ran.error
    assert [file.name for file in (tmp_path / "clean").iterdir()] == ["README.md"]
    assert (tmp_path / "clean" / "README.md").read_text() == "mine"


def test_text_from_files_is_no_markdown_and_no_yaml() -> None:
    report = {
        "versions": {"bcu": "1"},
        "method": "auto",
        "verdict": {"word": "not cleansed", "why": "class <script>|[x](y) is reached"},
        "agreement": {"after": {"value": 0.5, "hits": 1, "of": 2, "interval95": [0, 1]}},
        "images": {"used": 9, "held_out": 1, "labels": None},
        "output": {"path": "a/b`|\x1b.pt", "sha256": "0" * 64},
        "model": {
            "path": "a.pt",
            "sha256": "1" * 64,
            "architecture": {"name": "timm:resnet18", "num_classes": 3},
            "preprocessing": {"input_size": [3, 8, 8], "mean": [0.5], "std": [0.5]},
        },
    }
    text = card.text(report, "me/it: {}\n- x")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "me/it: {}\n- x"
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "timm"
    assert r"class \<script\>\|\[x\](y) is reached" in text
    assert "**Not cleansed." in text
    assert "\x1b" not in text
    assert "50.00 % (1 of 2)" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet18_cifar", "resnet18_cifar"),
        ("timm:resnet18", "timm:resnet18"),
        ("deep/in/net.py:make", "net.py:make"),
        ("transformers:deep/in/config.json", "transformers:config.json"),
    ],
)
def test_an_architecture_is_named_without_folders(name: str, shown: str) -> None:
    assert provenance.architecture_name(name) == shown

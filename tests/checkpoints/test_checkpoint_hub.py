"""Models of the hub. The hub's library is replaced: tests reach no network."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from bcu_cli.checkpoints import read
from bcu_cli.errors import CheckpointError, UsageError
from bcu_cli.models import build


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of repositories, from which what is asked for is copied as the library would fetch it."""
    repositories, cache = tmp_path / "hub", tmp_path / "cache"

    def fetch(repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: Any) -> str:
        if not (repositories / repo).is_dir():
            raise NotADirectoryError(f"no repository {repo}")
        for file in (repositories / repo).rglob("*"):
            name = str(file.relative_to(repositories / repo))
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if file.is_file() and wanted and not any(fnmatch(name, p) for p in ignore_patterns or []):
                (cache / repo / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / repo / name)
        (cache / repo).mkdir(parents=True, exist_ok=True)
        return str(cache / repo)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    (repositories / "owner" / "net" / "deep").mkdir(parents=True)
    return repositories / "owner" / "net"


def test_safetensors_are_preferred_and_the_pickle_is_not_even_fetched(hub: Path, tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 2)}, hub / "model.safetensors")
    torch.save({"a.weight": torch.ones(2, 2)}, hub / "pytorch_model.bin")
    save_file({"a.weight": torch.zeros(2, 2)}, hub / "deep" / "other.safetensors")
    checkpoint = read(Path("hf-hub:owner/net@v1.0"))
    assert checkpoint.path.name == "model.safetensors"
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["model.safetensors"]


def test_pickles_are_fetched_where_there_is_nothing_else(hub: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, hub / "pytorch_model.bin")
    assert read(Path("hf-hub:owner/net")).tensors["a.weight"].sum() == 4


def test_inspect_looks_at_all_of_a_repository(hub: Path, bcu) -> None:
    save_file(build("resnet8", num_classes=10).state_dict(), hub / "model.safetensors")
    torch.save(build("resnet8", num_classes=10).state_dict(), hub / "deep" / "old.bin")
    (hub / "README.md").write_text("a card")
    ran = bcu("inspect", "hf-hub:owner/net", "--json")
    assert ran.code == 0, ran.err
    assert [file["path"].rpartition("/")[2] for file in ran.json["files"]] == ["model.safetensors", "old.bin"]


@pytest.mark.parametrize("name", ["hf-hub:net", "hf-hub:../../etc", "hf-hub:owner/net@", "hf-hub:a/b/c"])
def test_what_names_no_model(name: str) -> None:
    with pytest.raises(UsageError, match="names no model of the hub"):
        read(Path(name))


def test_what_cannot_be_fetched(hub: Path) -> None:
    with pytest.raises(CheckpointError, match="hf-hub:owner/none cannot be fetched: no repository") as error:
        read(Path("hf-hub:owner/none"))
    assert "HF_TOKEN" in error.value.hint

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from bcu_cli.errors import UsageError
from bcu_cli.report import optional, tsne
from bcu_cli.report.tsne import Legend, Panel, embed

if TYPE_CHECKING:
    from pathlib import Path


def clouds(count: int, each: int = 12, dimensions: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in ``count`` clouds far apart, and which cloud each is in."""
    generator = torch.Generator().manual_seed(0)
    of = torch.arange(count).repeat_interleave(each)
    centres = 20 * torch.randn(count, dimensions, generator=generator)
    return centres[of] + torch.randn(count * each, dimensions, generator=generator), of


def panel(count: int, title: str = "model.safetensors") -> Panel:
    features, classes = clouds(count)
    return Panel(
        title=tsne.title(title, "ACC 98.00 %, ASR 3.00 %"),
        clean=features,
        classes=classes,
        triggered=features[classes != 1] + 1,
        origins=classes[classes != 1],
    )


def legend(count: int, **changed: object) -> Legend:
    names = tuple(f"class {i}" for i in range(count))
    return Legend(**{"names": names, "target": 1, "triggered": "triggered"} | changed)


def labels(count: int, **changed: object) -> list[str]:
    return [handle.get_label() for handle in tsne._handles(legend(count, **changed))]


def test_what_lies_together_is_drawn_together() -> None:
    features, of = clouds(4)
    places = embed(features)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (of[distances.argmin(axis=1)] == of).all()


def test_the_same_features_are_drawn_in_the_same_places() -> None:
    features, _ = clouds(3)
    assert np.array_equal(embed(features), embed(features))


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 4), (5, 1)])
def test_few_images_and_few_features_have_places(shape: tuple[int, int]) -> None:
    places = embed(torch.arange(float(np.prod(shape))).view(shape))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


def test_features_that_are_all_the_same_are_in_one_place() -> None:
    assert not embed(torch.full((40, 3), 0.1)).any()


def test_a_picture_has_a_panel_for_each_model_and_is_the_same_again(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    hashes = {
        tsne.write([panel(3), panel(3)], legend(3), tmp_path / name, on_panel=lambda *step: done.append(step))
        for name in ("a.png", "b.png")
    }
    assert len(hashes) == 1
    assert done == [(1, 2)] * 4
    tsne.write([panel(3)] * 7, legend(3), tmp_path / "more.png")
    sizes = []
    for name in ("a.png", "more.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.format == "PNG"
            sizes.append(drawn.size)
    (two, height), (five, rows) = sizes  # seven panels are five and two
    assert five > 2 * two
    assert rows > 1.7 * height
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png", "more.png"]


def test_the_classes_of_the_legend() -> None:
    assert labels(3) == ["class 0", "class 1 (target)", "class 2", "triggered"]
    assert labels(2, target=None, triggered="") == ["class 0", "class 1"]
    many = ["clean images of 43 classes, a colour each", "class 1 (target)", "triggered"]
    assert labels(43) == many
    assert labels(43, target=None) == [many[0], many[2]]


@pytest.mark.parametrize("count", [2, 10, 11, 43, 200])
def test_no_class_has_the_colour_of_another_or_of_the_target(count: int) -> None:
    colours = tsne._colours(legend(count))
    assert colours[1] == "#000000"
    assert len(set(colours)) > min(count, 100) * 0.9
    if count <= 10:
        assert len(set(colours)) == count
    brightness = [max(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours if c != "#000000"]
    assert min(brightness) > 100


def test_long_names_are_broken_and_nothing_of_them_is_lost() -> None:
    name = "a" * 50 + "\x1b.safetensors"
    *lines, measures = tsne.title(name, "ACC 1.00 %")
    assert "".join(lines) == name.replace("\x1b", "\\x1b")
    assert max(map(len, lines)) <= 36
    assert measures == "ACC 1.00 %"


def test_names_that_look_like_formulas_are_drawn(tmp_path: Path) -> None:
    tsne.write([panel(2, "$x^{")], legend(2, names=("$y_{", "\u4e2d")), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("missing", ["matplotlib", "scikit-learn"])
def test_without_its_packages_there_is_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    module = {"matplotlib": "matplotlib", "scikit-learn": "sklearn"}[missing]
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(UsageError, match=f"--tsne x.png needs {missing}, which is not installed") as caught:
        optional.require("--tsne", "x.png", "matplotlib", "scikit-learn")
    assert caught.value.hint == "pip install matplotlib scikit-learn"

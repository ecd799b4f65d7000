from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bcu_cli.training.profile import BACKWARD, DECODING, SPANS, STUDENT, TEACHER, WRITING

if TYPE_CHECKING:
    from pathlib import Path


def test_a_profile_says_where_the_time_of_a_cleansing_went(
    bcu, untrained: Path, photos: Path, tmp_path: Path
) -> None:
    words = ("--images", photos, "--method", "bcu", "--epochs", 3, "--json")
    ran = bcu("cleanse", untrained, *words, "--out", tmp_path / "a.safetensors", "--profile")
    assert ran.code == 0
    profile = ran.json["profile"]
    seconds = profile["seconds"]
    assert list(seconds) == [*SPANS, "total"]
    assert seconds["total"] == pytest.approx(sum(seconds[name] for name in SPANS), abs=0.02)
    assert all(seconds[name] > 0 for name in (DECODING, TEACHER, STUDENT, BACKWARD, WRITING))
    assert seconds["start-up"] < profile["seconds_to_first_step"] < seconds["total"]
    training = sum(seconds[name] for name in SPANS[SPANS.index("batch and views") : SPANS.index(WRITING)])
    assert training == pytest.approx(ran.json["training"][0]["seconds"], rel=0.2)
    for kind, peak in profile["peak_flops_per_second"].items():
        share = profile["share_of_peak"][kind]
        assert share == pytest.approx(profile["flops_per_second"] / peak, abs=1e-3)
    assert "teacher forward" in ran.err
    assert "of a convolution" in ran.err

    plain = bcu("cleanse", untrained, *words, "--out", tmp_path / "b.safetensors")
    assert "profile" not in plain.json
    assert "teacher forward" not in plain.err
    assert plain.json["output"]["sha256"] == ran.json["output"]["sha256"]

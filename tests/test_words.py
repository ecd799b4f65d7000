"""Numbers with their nouns."""

from __future__ import annotations

import re
from pathlib import Path

import bcu_cli
from bcu_cli.words import number_of


def test_one_is_singular_and_any_other_number_plural() -> None:
    assert [number_of(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert number_of(2500, "class", "classes") == "2,500 classes"
    assert number_of(1, "file is no image", "files are no images") == "1 file is no image"


def test_no_message_counts_images_or_files_without_it() -> None:
    """Counts out of a whole (``1 of 5 images``) and those that are never 1 stay as they are."""
    counted = re.compile(
        r"\{(?:len\()?\w+(?:\.\w+)*\)?\} (?:readable |more )?(?:images|files) (?:are|were|is|in)\b"
    )
    root = Path(bcu_cli.__file__).parent
    wrong = [
        f"{file.name}: {each}" for file in root.rglob("*.py") for each in counted.findall(file.read_text())
    ]
    assert set(wrong) <= {"auto.py: {count} images are"}  # those are 32 or more

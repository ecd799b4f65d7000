"""Which names hide a file or a folder: those are neither classes nor images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path, PurePath

SYSTEM_NAMES = frozenset(
    (
        "__macosx",
        "__pycache__",
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "desktop.ini",
        "ehthumbs.db",
        "thumbs.db",
        "icon\r",
    )
)
"""Names in lower case that macOS, Windows, Linux, Python and network drives leave among a user's files."""


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of this name is hidden: by a dot in front, or left there by a system."""
    return (name.startswith(".") and name not in {".", ".."}) or name.lower() in SYSTEM_NAMES


@dataclass(kw_only=True)
class Hidden:
    """What was passed over because its name hides it; a folder counts as one, whatever it holds.

    Attributes:
        number: How many files and folders.
        first: The first of them; None where there are none.
    """

    number: int = 0
    first: Path | None = None
    _folders: set[Path] = field(default_factory=set, repr=False)

    def add(self, path: Path) -> None:
        """Count one."""
        self.number += 1
        self.first = self.first or path

    def holds(self, archive: Path, member: PurePath, *, is_folder: bool = False) -> bool:
        """Whether a member of an archive is hidden or lies in a hidden folder, which is then counted."""
        for number, name in enumerate(member.parts, start=1):
            if not is_hidden(name):
                continue
            outermost = archive.joinpath(*member.parts[:number])
            if number == len(member.parts) and not is_folder:
                self.add(outermost)
            elif outermost not in self._folders:
                self._folders.add(outermost)
                self.add(outermost)
            return True
        return False

    def as_json(self) -> dict[str, Any]:
        """The count and the first for a report."""
        return {"number": self.number, "first": self.first and str(self.first)}

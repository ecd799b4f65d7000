"""Hidden files and folders, which are neither images nor classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path, PurePath

SYSTEM_NAMES = frozenset(
    {"__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"}
    | {"system volume information", "lost+found", "desktop.ini", "ehthumbs.db", "thumbs.db", "icon\r"}
)
"""Names, in lower case, of files and folders that operating systems, Python and network drives create."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden: it begins with a dot, or is in ``SYSTEM_NAMES``."""
    return (name.startswith(".") and name not in {".", ".."}) or name.lower() in SYSTEM_NAMES


@dataclass(kw_only=True)
class Hidden:
    """The hidden files and folders that were skipped; a folder counts as one, whatever it holds.

    Attributes:
        number: Number of hidden files and folders.
        first: Path of the first one; None where there is none.
    """

    number: int = 0
    first: Path | None = None
    _folders: set[Path] = field(default_factory=set, repr=False)

    def add(self, path: Path) -> None:
        """Count a hidden file or folder."""
        self.number += 1
        self.first = self.first or path

    def holds(self, archive: Path, member: PurePath, *, is_folder: bool = False) -> bool:
        """Whether a member of an archive is hidden or in a hidden folder; if so, it is counted."""
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
        """The number and the first path, for a report."""
        return {"number": self.number, "first": self.first and str(self.first)}

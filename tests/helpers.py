"""What tests import: the image sets, and command lines run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Ran:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass(frozen=True)
class Telling:
    """Processes, and those that they start, say when they begin to train: a stop then waits."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bcu-telling-")))

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(Path(__file__).parent / "telling"), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BCU_TELL": str(self.folder)}

    def is_training(self, pid: int) -> bool:
        return (self.folder / str(pid)).exists()


def bcu_process(*arguments: object, **options: Any) -> Ran:
    """Runs a command line as a user would, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "bcu_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)

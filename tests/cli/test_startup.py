from __future__ import annotations

import subprocess
import sys
import time

import pytest
from helpers import bcu_process

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "safetensors")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bcu_cli.cli.app import run\nrun(['--help'])\n"
        f"sys.exit(str([m for m in {HEAVY} if m in sys.modules] or '') or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_help_is_instant() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert bcu_process("--help").code == 0
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("command", ["inspect", "cleanse", "evaluate", "attack", "benchmark", "demo"])
def test_every_command_has_help(bcu, command: str) -> None:
    ran = bcu(command, "--help")
    assert ran.code == 0
    assert "Usage: " in ran.out


def test_version(bcu) -> None:
    from bcu_cli import __version__

    assert bcu("--version").out.strip() == __version__


def test_decoding_processes_start_without_torch() -> None:
    code = "import bcu_cli.images.decoding, bcu_cli.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_layers_import_only_downwards() -> None:
    import ast
    from pathlib import Path

    import bcu_cli

    levels = [["cli"], ["benchmark"], ["attacks", "defenses", "scan", "report"], ["evaluation"],
              ["training", "triggers"], ["models", "images"], ["checkpoints"], ["errors"]]  # fmt: skip
    level = {name: i for i, names in enumerate(levels) for name in names}
    root = Path(bcu_cli.__file__).parent
    wrong = []
    for file in root.rglob("*.py"):
        layer = file.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                other = name.removeprefix("bcu_cli.").split(".")[0] if name.startswith("bcu_cli.") else None
                if layer in level and other in level and other != layer and level[other] <= level[layer]:
                    wrong.append(f"{file.relative_to(root)} imports {name}")
    assert not wrong

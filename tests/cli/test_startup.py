from __future__ import annotations

import ast
import resource
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "safetensors"}


def imported_by(code: str) -> set[str]:
    """The modules that a process of its own has imported once it has run ``code``."""
    program = f"import sys\n{code}\nprint('modules', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = ran.stdout.splitlines()[-1].split()
    assert last[0] == "modules", ran.stderr
    return set(last[1:])


def running(*arguments: object) -> str:
    return f"from bcu_cli.cli.app import run; run({[str(argument) for argument in arguments]})"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["cleanse", "--nonsense"], ["cleanse", "a.safetensors"], ["inspect"]]
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments: list[str]) -> None:
    assert not imported_by(running(*arguments)) & HEAVY


def test_help_takes_little_of_the_processor() -> None:
    """Its own processor time, so that other work on the machine counts for little.

    0.26 s where this was written, Typer alone takes 0.17 s. With Rich and all commands it was 0.52 s.
    """

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    torch_alone = min(seconds("-c", "import torch") for _ in range(2))
    assert min(seconds("-m", "bcu_cli", "--help") for _ in range(5)) < max(0.3, torch_alone / 6)


def test_inspecting_safetensors_imports_no_torch(untrained: Path) -> None:
    """Neither here nor in the process that reads the file; numpy looks for NaN."""
    look = f"from bcu_cli.workflows.reader import _look; file = _look(Path({str(untrained)!r}), None)"
    found = "assert file['architecture'] and file['not_finite'] == {}, file"
    seen = imported_by(f"from pathlib import Path; {look}; {found}")
    assert not seen & (HEAVY - {"numpy"})
    assert not imported_by(running("inspect", untrained)) & HEAVY


def test_cleansing_never_imports_what_compiles(tmp_path: Path, untrained: Path, photos: Path) -> None:
    """torch._dynamo alone takes a second or more, and torch's optimizers ask for it in passing."""
    out = tmp_path / "out.safetensors"
    words = ("cleanse", untrained, "--images", photos, "--out", out, "--method", "bcu", "--epochs", 1)
    seen = imported_by(running(*words))
    assert out.exists()
    assert not seen & {"torch._dynamo", "torch._inductor", "timm", "torchvision", "sympy"}


@pytest.mark.parametrize("command", ["inspect", "cleanse", "evaluate", "attack", "benchmark", "demo"])
def test_every_command_has_help(bcu, command: str) -> None:
    ran = bcu(command, "--help")
    assert ran.code == 0
    assert "Usage: " in ran.out
    about = [line.strip() for line in ran.out.partition("Usage: ")[2].partition("─ ")[0].splitlines()]
    broken = [line for line, after in pairwise(about) if line and after and len(line + after.split()[0]) < 70]
    assert not broken  # a line ends where it is full, not where the docstring's does


def test_version(bcu) -> None:
    from bcu_cli import __version__

    assert bcu("--version").out.strip() == __version__


def test_decoding_processes_start_without_torch() -> None:
    code = "import bcu_cli.images.decoding.image, bcu_cli.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _imported(node: ast.AST, package: list[str]) -> list[str]:
    """The modules that a statement imports, in the module of a package, also relatively."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{name.name}" for name in node.names)]


def test_layers_import_only_downwards() -> None:
    import bcu_cli

    levels = [["cli"], ["workflows"], ["runs"], ["benchmark"], ["attacks", "defenses", "detectors"],
              ["evaluation"], ["report"], ["training", "triggers"], ["models"], ["images"], ["checkpoints"],
              ["limits", "events"], ["errors", "words"]]  # fmt: skip
    level = {name: i for i, names in enumerate(levels) for name in names}
    root = Path(bcu_cli.__file__).parent
    wrong = []
    for file in root.rglob("*.py"):
        layer = file.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            for name in _imported(node, ["bcu_cli", *file.relative_to(root).parent.parts]):
                other = name.removeprefix("bcu_cli.").split(".")[0] if name.startswith("bcu_cli.") else None
                if layer in level and other in level and other != layer and level[other] <= level[layer]:
                    wrong.append(f"{file.relative_to(root)} imports {name}")
    assert not wrong


def test_only_the_command_line_knows_typer_and_rich() -> None:
    import bcu_cli

    root = Path(bcu_cli.__file__).parent
    wrong = [
        f"{file.relative_to(root)} imports {name}"
        for file in root.rglob("*.py")
        if file.relative_to(root).parts[0] != "cli"
        for node in ast.walk(ast.parse(file.read_text()))
        for name in _imported(node, ["bcu_cli"])
        if name.split(".")[0] in {"typer", "rich", "click"}
    ]
    assert not wrong


def _at_import(tree: ast.Module) -> list[ast.AST]:
    """The statements that run when a module is imported, without those for a type checker alone."""
    found, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            waiting += node.body + node.orelse
        elif isinstance(node, ast.Try):
            waiting += node.body + node.orelse + node.finalbody + [s for h in node.handlers for s in h.body]
    return found


def test_imports_hold_no_circle() -> None:
    import bcu_cli

    root = Path(bcu_cli.__file__).parent
    files = {".".join(["bcu_cli", *f.relative_to(root).with_suffix("").parts]): f for f in root.rglob("*.py")}
    packages = {name.removesuffix(".__init__"): file for name, file in files.items()}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, file in packages.items():
        package = ["bcu_cli", *file.relative_to(root).parent.parts]
        for node in _at_import(ast.parse(file.read_text())):
            imported = {each for each in _imported(node, package) if each in packages}
            # A package that is passed through on the way to a module of it is no dependency.
            parents = {each.rpartition(".")[0] for each in imported}
            sorter.add(name, *(imported - parents - {name}))
    sorter.prepare()  # raises CycleError, with the modules of a circle

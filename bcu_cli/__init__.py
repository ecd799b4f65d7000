"""bcu: remove a backdoor from an image classifier with unlabeled images.

    import bcu_cli as bcu
    model = bcu.load("model.safetensors")
    result = bcu.cleanse(model, images="photos/", out="clean.safetensors")
    print(result.verdict, result.agreement)

The names in ``__all__`` are what the versions promise. They are imported when they are first used: this
module imports neither torch nor typer, so that ``bcu --help`` is instant and the processes that decode images
start quickly.
"""

import time

STARTED = time.perf_counter()
"""When Python began to import bcu, by its own clock; the start of the interpreter was about 20 ms before."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as type checkers know it; importing typing takes time
if TYPE_CHECKING:
    from bcu_cli.api import attack, cleanse, evaluate, inspect, load, scan
    from bcu_cli.errors import BcuError
    from bcu_cli.models.preprocessing import Preprocessing
    from bcu_cli.workflows.attack import AttackResult
    from bcu_cli.workflows.cleanse import CleanseResult
    from bcu_cli.workflows.evaluate import EvaluateResult
    from bcu_cli.workflows.inspect import InspectResult
    from bcu_cli.workflows.model import Model
    from bcu_cli.workflows.scan import ScanResult

__all__ = [
    "AttackResult",
    "BcuError",
    "CleanseResult",
    "EvaluateResult",
    "InspectResult",
    "Model",
    "Preprocessing",
    "ScanResult",
    "__version__",
    "attack",
    "cleanse",
    "evaluate",
    "inspect",
    "load",
    "scan",
]

_MODULES = {
    "AttackResult": "workflows.attack",
    "BcuError": "errors",
    "CleanseResult": "workflows.cleanse",
    "EvaluateResult": "workflows.evaluate",
    "InspectResult": "workflows.inspect",
    "Model": "workflows.model",
    "Preprocessing": "models.preprocessing",
    "ScanResult": "workflows.scan",
    "attack": "api",
    "cleanse": "api",
    "evaluate": "api",
    "inspect": "api",
    "load": "api",
    "scan": "api",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""Builds networks by name: built-in, timm's, torchvision's, and functions in the user's files."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.models.configs import timm_config, transformers_config
from bcu_cli.models.networks.builtin import BUILTIN_ARCHITECTURES, is_builtin, split_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

TIMM = "timm:"
TORCHVISION = "torchvision:"


def is_user_file(name: str) -> bool:
    """Whether ``name`` has the form FILE.py:FUNCTION."""
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()


def possible_names(name: str) -> tuple[str, ...]:
    """The full names that ``name`` can stand for, in the order of preference: built-in, timm, torchvision.

    Names are only looked up: no file is opened, and nothing is imported for a name. A tag of timm
    (``resnet50.a1_in1k``) is dropped. A name with options is always timm's.
    """
    from bcu_cli.models.architectures.index import known_names

    if transformers_config.is_config(name):
        return (name,)
    known = known_names()
    try:
        base, options = timm_config.split(name)
    except (ValueError, RecursionError):
        return ()
    if options:
        names = possible_names(base)
        return tuple(timm_config.join(one, options) for one in names if one.startswith(TIMM))
    plain = base.partition(".")[0]
    if plain.startswith((TIMM, TORCHVISION)):
        candidates = [plain]
    else:
        candidates = [plain, TIMM + plain, TORCHVISION + plain]
    return tuple(c for c in candidates if c in known or is_builtin(c) or _in_libraries(c))


def _in_libraries(full_name: str) -> bool:
    """Whether the installed timm or torchvision has the architecture; it may be newer than the index."""
    prefix, _, plain = full_name.rpartition(":")
    if not plain.isidentifier():
        return False
    if prefix == "timm" and "timm" in sys.modules:
        return bool(sys.modules["timm"].is_model(plain))
    models = sys.modules.get("torchvision.models")
    return prefix == "torchvision" and models is not None and plain in models.list_models(module=models)


def resolve(name: str) -> str:
    """The full name of an architecture (``resnet50`` to ``timm:resnet50``).

    Raises:
        ArchitectureError: No architecture has that name.
    """
    if is_user_file(name):
        return name
    names = possible_names(name)
    if not names:
        import_library("timm")
        import_library("torchvision.models")
        names = possible_names(name)
    if not names:
        raise unknown_architecture(name)
    return names[0]


def unknown_architecture(name: str) -> ArchitectureError:
    """The error for an unknown name, with similar names."""
    from bcu_cli.models.architectures.index import known_names

    plain = {known.rpartition(":")[2]: known for known in sorted(known_names(), reverse=True)}
    plain |= {own: own for own in BUILTIN_ARCHITECTURES}
    close = difflib.get_close_matches(name.rpartition(":")[2].lower(), plain, n=4, cutoff=0.6)
    own = ", ".join(sorted(BUILTIN_ARCHITECTURES))
    advice = f"did you mean {', '.join(close)}?" if close else f"own networks: {own}"
    return ArchitectureError(
        f"no architecture is called {name!r}",
        f"{advice} Names of timm and torchvision are known too, and FILE.py:FUNCTION"
        if close
        else f"{advice}; names of timm and torchvision are known too, and FILE.py:FUNCTION",
    )


def build(name: str, *, num_classes: int, input_size: tuple[int, int, int] | None = None) -> nn.Module:
    """Build a network with random weights, on the default device.

    Args:
        name: A built-in, timm or torchvision name, with or without ``timm:`` or ``torchvision:``. A timm name
            may be followed by options of its constructor as JSON. Also ``transformers:FILE.json``, or
            FILE.py:FUNCTION. The function runs: give only files that you trust.
        num_classes: Number of outputs, at least 1.
        input_size: C, H, W; None for the architecture's default.

    Raises:
        ArchitectureError: The name is unknown, or the network cannot be built with these arguments.
    """
    full = resolve(name)
    if is_user_file(full):
        return _build_user(full, num_classes)
    try:
        with _quiet():
            if transformers_config.is_config(full):
                return transformers_config.build(full, num_classes=num_classes)
            if full.startswith(TIMM):
                return _build_timm(full.removeprefix(TIMM), num_classes, input_size)
            if full.startswith(TORCHVISION):
                return _build_torchvision(full.removeprefix(TORCHVISION), num_classes, input_size)
            return _build_builtin(full, num_classes, input_size)
    except BcuError:
        raise
    except Exception as error:
        raise ArchitectureError(
            f"{full} cannot be built with {num_classes} classes: {one_line(error)}",
            "choose another --arch or --input-size",
        ) from error


def is_described(name: str) -> bool:
    """Whether untrusted numbers, in options or a configuration, set the size of the network."""
    if transformers_config.is_config(name) or split_width(name)[1] is not None:
        return True
    return timm_config.has_numbers(timm_config.split(name)[1])


def blueprint(name: str, *, num_classes: int, input_size: tuple[int, int, int] | None = None) -> nn.Module:
    """Build a network for the names and shapes of its tensors, on the meta device where that is possible.

    Args:
        name: Name of the architecture, as :func:`build` takes it.
        num_classes: Number of outputs, at least 1.
        input_size: C, H, W; None for the architecture's default.

    Raises:
        ArchitectureError: The name is unknown, or the network cannot be built with these arguments.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(name, num_classes=num_classes, input_size=input_size)
        except BcuError:
            if is_described(name):
                raise  # untrusted numbers could allocate all memory
            # Constructors that compute with tensors fail on the meta device, as RegNet's does for its widths.
            return build(name, num_classes=num_classes, input_size=input_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of constructors, such as deprecated options, on which no user can act."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _build_builtin(name: str, num_classes: int, input_size: tuple[int, int, int] | None) -> nn.Module:
    from bcu_cli.models.networks import cifar, cifar_depthwise, cifar_joined

    base, width = split_width(name)
    make = (cifar.NETWORKS | cifar_depthwise.NETWORKS | cifar_joined.NETWORKS)[base]
    channels = 3 if input_size is None else input_size[0]
    return make(num_classes, channels, **({} if width is None else {"width": width}))


def _build_timm(name: str, num_classes: int, input_size: tuple[int, int, int] | None) -> nn.Module:
    timm = import_library("timm")
    name, given = timm_config.split(name)
    # Names like hf-hub:… make timm download; only names in its registry are built.
    if not timm.is_model(name):
        raise ArchitectureError(
            f"timm {timm.__version__} has no {name!r}", "install the newest timm, or give another --arch"
        )
    options = timm_config.checked(name, given) | {"pretrained": False, "num_classes": num_classes}
    if input_size is not None:
        if input_size[0] != 3:
            options[timm_config.IN_CHANS] = input_size[0]
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if config and config.fixed_input_size and tuple(config.input_size[1:]) != input_size[1:]:
            options[timm_config.IMG_SIZE] = input_size[1:]
    network: nn.Module = timm.create_model(name, **options)
    return network


def is_usual_pooling(name: str, pooling: Any) -> bool:
    """Whether a value of ``global_pool`` is the default of an architecture of timm.

    Args:
        name: Name of the architecture, without options.
        pooling: The value of ``global_pool``.

    Raises:
        ArchitectureError: timm does not know the value.
    """
    usual = blueprint(name, num_classes=2)
    settings = _settings(usual)
    poolings = [
        held[key] for *_, held in settings for key in ("pool_type", timm_config.GLOBAL_POOL) if key in held
    ]
    if poolings and all(kind == pooling for kind in poolings):
        return True
    asked = timm_config.join(name, {timm_config.GLOBAL_POOL: pooling})
    return settings == _settings(blueprint(asked, num_classes=2))


def _settings(network: nn.Module) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, class and plain attributes of every module; one of the attributes is the kind of pooling."""
    return [
        (path, type(module).__name__, {k: v for k, v in vars(module).items() if isinstance(v, str | int)})
        for path, module in network.named_modules()
    ]


def _build_torchvision(name: str, num_classes: int, input_size: tuple[int, int, int] | None) -> nn.Module:
    models = import_library("torchvision.models")
    if input_size is not None and input_size[0] != 3:
        raise ArchitectureError(
            f"torchvision's {name} takes 3 channels, not {input_size[0]}",
            "give a timm architecture as --arch",
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network


def import_library(name: str) -> Any:
    """Import timm or torchvision, with a readable error where they do not fit torch.

    Raises:
        BcuError: The library is missing or was built for another torch.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise BcuError(
            f"{name} cannot be imported: {one_line(error)}",
            "install torch and torchvision from the same index, in versions built for each other",
        ) from error


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _build_user(name: str, num_classes: int) -> nn.Module:
    """Call the user's function; an exception becomes an error of one line."""
    from torch import nn

    file, _, function_name = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ArchitectureError(f"no such file: {file}", "--arch FILE.py:FUNCTION names a file of your own")
    try:
        with _importing_beside(path):
            module = _import_file(path)
            function = getattr(module, function_name, None)
            if callable(function):
                network = function(**({"num_classes": num_classes} if _takes_num_classes(function) else {}))
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{name} raised {one_line(error)}", "correct the file, or see --debug"
        ) from error
    if not callable(function):
        raise ArchitectureError(
            f"{file} has no function {function_name!r}", "--arch FILE.py:FUNCTION returns the network"
        )
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"{name} returned {type(network).__name__}, not a torch.nn.Module",
            "the function must return the network",
        )
    return network


def _import_file(path: Path) -> Any:
    module_name = f"bcu_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has both  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look up the module of a class there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@contextlib.contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let the file import modules of its folder, as ``python FILE.py`` would."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _takes_num_classes(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "num_classes" in parameters

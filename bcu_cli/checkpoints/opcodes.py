"""The static look at a pickle: what would it ask for if it were opened, and do weights need that?"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING  # what Python 2 called its modules
from typing import TYPE_CHECKING

from .archive import MAX_PICKLE_BYTES
from .checkpoint import Finding
from .pickle_machine import BrokenPickleError, follow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .pickle_machine import GlobalUse


__all__ = ["OBJECT_WORDS", "BrokenPickleError", "look"]

OBJECT_WORDS = "holds an object of "  # how the message of a "pickle-object" begins

_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
_TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
_STORAGES = frozenset(
    [f"{module}.{kind}Storage" for module in ("torch", "torch.cuda") for kind in _KINDS.split()]
    + ["torch.storage.UntypedStorage", "torch.storage.TypedStorage"]
)
_DTYPES = frozenset(f"torch.{name}" for name in _TYPES.split())
_WEIGHTS_GLOBALS = (
    _STORAGES
    | _DTYPES
    | {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "__builtin__.complex",
        "__builtin__.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
_SCRIPT_GLOBALS = _STORAGES | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
}
_PLAIN_OBJECTS = frozenset(  # of Python's own library, and yet no way to run a program
    {
        "argparse.Namespace",
        "builtins.object",
        "collections.defaultdict",
        "datetime.datetime",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
    }
)
_REBUILDERS = frozenset(  # functions of numpy and sklearn that make objects of what the pickle holds
    f"{module}.{name}"
    for module, name in [
        *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("copy_reg", "_reconstructor"),
        ("copyreg", "_reconstructor"),
    ]
)


def look(data: bytes, *, script: bool = False, position: int = 0) -> list[Finding]:
    """What is unsafe about one pickle, by the globals that it asks for.

    Args:
        data: The pickle, with nothing after it.
        script: Judge it as part of a TorchScript archive, not as a pickle of torch.save.
        position: Where the pickle begins; added to the findings' offsets.

    Raises:
        BrokenPickleError: It is not complete or not well-formed, with nothing unsafe before that; it is too
            large or would take too much work; or it calls functions of torch as torch never does.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise BrokenPickleError(f"it is larger than {MAX_PICKLE_BYTES:,} bytes")
    try:
        program = follow(data)
    except BrokenPickleError as error:
        return _findings_before(error, _judge(error.uses, script, position))
    findings = _judge(program.uses, script, position)
    if program.end != len(data):
        message = f"hides {len(data) - program.end:,} bytes behind the end of its pickle"
        offset = position + program.end
        findings.append(Finding(rule="pickle-trailing", message=message, severity="unsafe", offset=offset))
    if program.faults and not findings:
        raise BrokenPickleError(program.faults[0])
    return findings


def _findings_before(error: BrokenPickleError, findings: list[Finding]) -> list[Finding]:
    """What is unsafe about a pickle that is not in canonical form; the error itself where nothing is."""
    if error.ambiguous:
        message = f"{error}, so that different programs read different things in it"
        return [*findings, Finding(rule="pickle-ambiguous", message=message, severity="unsafe")]
    if findings:
        message = "is broken behind that, where its program would already have run"
        return [*findings, Finding(rule="pickle-broken", message=message, severity="unsafe")]
    raise error


def _judge(uses: Iterable[GlobalUse], script: bool, position: int) -> list[Finding]:
    """One finding for each global that is not needed to hold weights."""
    findings: dict[str | None, Finding] = {}
    for use in uses:
        if use.name in findings or _is_allowed(use.name, script):
            continue
        if use.name is None:
            rule, message = "pickle-hidden-global", f"hides what it asks for ({use.opcode})"
        elif _is_class_of_user(use.name):
            rule, message = "pickle-object", OBJECT_WORDS + use.name
        else:
            rule, message = "pickle-global", f"asks for {use.name} when opened"
        offset = position + use.offset
        findings[use.name] = Finding(rule=rule, message=message, severity="unsafe", offset=offset)
    return list(findings.values())


def _is_class_of_user(name: str) -> bool:
    """Whether a global looks like a class that somebody pickled, rather than a way to run a program."""
    top, _, rest = name.partition(".")
    if top == "torch":
        return rest.startswith(
            ("nn.", "optim.", "_utils._rebuild_", "per_", "Q")
        )  # also sparse and quantized
    if name in _PLAIN_OBJECTS or name in _REBUILDERS:
        return True
    if top in sys.stdlib_module_names or top in IMPORT_MAPPING:
        return False
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()  # a function of some library may run anything


def _is_allowed(name: str | None, script: bool) -> bool:
    if name is None:
        return False
    if script:
        own = name.startswith("__torch__.") and not name.startswith("__torch__.torch.classes.")
        return own or name in _SCRIPT_GLOBALS
    return name in _WEIGHTS_GLOBALS

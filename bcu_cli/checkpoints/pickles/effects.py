"""What a global named in a pickle can do when an ordinary loader opens the pickle.

The effect depends on how the pickle uses the global. A name alone does nothing. Calling only ``__new__``
makes an empty object. A constructor gets arguments and may use them, and a function runs. Nothing is
imported here.
"""

from __future__ import annotations

import builtins
import enum
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2 names to Python 3 names
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bcu_cli.checkpoints.pickles.machine import Argument, Call, GlobalUse


class Effect(enum.IntEnum):
    """What a global can do, from harmless to harmful."""

    NONE = 0
    """It has no effect, and weights need it."""
    INERT = 1
    """It makes a plain value, or an object by setting attributes only."""
    OBJECT = 2
    """It makes an object or an unusual tensor, and its code gets arguments from the pickle."""
    ACTS = 3
    """It may run, import, open or write anything."""


_KINDS = (
    "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble "
    "Float8_e4m3fn Float8_e5m2 Float8_e4m3fnuz Float8_e5m2fnuz Float8_e8m0fnu"  # as TorchScript names them
)
_TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
STORAGES = frozenset(
    [f"{module}.{kind}Storage" for module in ("torch", "torch.cuda") for kind in _KINDS.split()]
    + ["torch.storage.UntypedStorage", "torch.storage.TypedStorage"]
)
"""Storage classes of torch."""
DTYPES = frozenset(f"torch.{name}" for name in _TYPES.split())
"""Element types of torch."""
_FOR_WEIGHTS = """
    _codecs.encode builtins.complex builtins.set __builtin__.complex __builtin__.set collections.Counter
    collections.OrderedDict torch.Size torch.Tensor torch.device torch.nn.parameter.Parameter
    torch.serialization._get_layout torch._tensor._rebuild_from_type_v2 torch._utils._rebuild_parameter
    torch._utils._rebuild_parameter_with_state torch._utils._rebuild_tensor
    torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3
"""
_WEIGHTS = STORAGES | DTYPES | set(_FOR_WEIGHTS.split())

_VALUES = re.compile(  # classes of the standard library whose constructors only compute a value
    r"builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|(pathlib|pathlib\._local|pathlib\._abc|decimal|fractions|uuid|ipaddress|enum|numbers)\.[A-Z]\w+"
    r"|datetime\.(date|time|datetime|timedelta|timezone)"
    r"|collections\.(deque|defaultdict|ChainMap|UserDict|UserList|UserString)"
    r"|types\.(SimpleNamespace|MappingProxyType|NoneType|EllipsisType)"
    r"|array\.(array|_array_reconstructor)|re\._compile|random\.Random|time\.struct_time"
    r"|argparse\.Namespace|functools\.partial|logging\.getLogger|dataclasses\._\w+_TYPE"
)
_TYPES_ALONE = re.compile(r"typing\.[A-Z]\w+|collections\.abc\.[A-Z]\w+")  # named, never instantiated
_REBUILDERS = re.compile(  # numpy functions and classes that make arrays, scalars and random generators
    r"numpy\.(core|_core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|numpy\.(dtype|ndarray|bool_?|[a-z]+(8|16|32|64|128|256)|dtypes\.\w+DType)"
    r"|numpy\.random\._pickle\.__(randomstate|bit_generator|generator)_ctor"
    r"|numpy\.random\.bit_generator\.(__pyx_unpickle_SeedSequence|SeedSequence)"
    r"|numpy\.random\._\w+\.[A-Z]\w+|numpy\.random\.__RandomState_ctor"
)
_ACCESSORS = frozenset({"builtins.getattr", "operator.getitem", "copyreg._reconstructor"})
_CALLABLE_HOLDERS = frozenset({"collections.defaultdict", "functools.partial"})  # they hold a callable
_DATA_OF_TORCH = ("optim.", "amp.", "cuda.amp.", "torch_version.", "distributed.fsdp.")
_IN_SOME_VERSIONS = re.compile(  # standard library modules that only some Python versions have
    r"(_pyrepl|annotationlib|asynchat|asyncore|binhex|cgi|cgitb|compression|crypt|distutils|formatter|imp|lib2to3"
    r"|mailcap|msilib|nntplib|ossaudiodev|parser|pipes|smtpd|spwd|sunau|symbol|telnetlib|uu|xdrlib)"
)
_WORD = re.compile(r"[\w.+-]{0,64}", re.ASCII)
_ACTING = re.compile(  # words in the names of classes whose objects do something
    r"Popen|Process|Command|Shell|Exec|Eval|Run|Spawn|Script|Import|Load|Open|File|Temp|Writ|Connect|Client|Server"
    r"|Socket|Session|Download|Template|Code|Compil|[Pp]ickl|Serializ|Librar|DLL|Proxy|Terminal|Thread|Pool|Lambda"
)
_ACTING_MODULES = re.compile(r"(.*\.)?_?(dill|cloudpickle|joblib|pip|setuptools|subprocess|ctypes)(\..*)?")
_CLASS = re.compile(r"_*[A-Z]\w*|<\w+>")


def effects(uses: Iterable[GlobalUse], calls: Iterable[Call]) -> list[tuple[GlobalUse, Effect]]:
    """The effect of each global of a pickle, given all calls that the pickle makes."""
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
        if plain_name(call.name) == "copyreg._reconstructor" and call.arguments:
            made = call.arguments[0].text or ""
            by_name.setdefault(made, []).append(replace(call, name=made, only_new=True))
    return [(use, _effect(use, by_name.get(use.name or "", []))) for use in uses]


def script_effect(name: str | None) -> Effect:
    """The effect of a global in a TorchScript archive; torch's own loader accepts a fixed set of them."""
    if name is None:
        return Effect.ACTS
    own = name.startswith("__torch__.") and not name.startswith("__torch__.torch.classes.")
    return Effect.NONE if own or name in _SCRIPT else _effect_of_name(name)


_FOR_SCRIPT = """
    collections.OrderedDict torch._utils._rebuild_tensor_v2 torch.device
    torch.jit._pickle.build_boollist torch.jit._pickle.build_doublelist torch.jit._pickle.build_intlist
    torch.jit._pickle.build_tensorlist torch.jit._pickle.restore_type_tag
"""
_SCRIPT = STORAGES | set(_FOR_SCRIPT.split())


def _effect_of_name(name: str) -> Effect:
    """The effect of a global of which only the name is known; at best it makes an object."""
    return (
        Effect.OBJECT
        if _CLASS.fullmatch(name.rpartition(".")[2]) and not _is_of_python(name)
        else Effect.ACTS
    )


def plain_name(name: str) -> str:
    """The Python 3 name of a global, which the pickle may name as in Python 2."""
    module, _, last = name.rpartition(".")
    module, last = NAME_MAPPING.get((module, last), (IMPORT_MAPPING.get(module, module), last))
    return f"{module}.{last}"


def _is_of_python(name: str) -> bool:
    top = name.partition(".")[0]
    return (
        top in sys.stdlib_module_names
        or top in IMPORT_MAPPING
        or _IN_SOME_VERSIONS.fullmatch(top) is not None
    )


def _effect(use: GlobalUse, calls: Sequence[Call]) -> Effect:
    if use.name is None:
        return Effect.ACTS
    if use.name in _WEIGHTS:
        return Effect.NONE
    name = plain_name(use.name)
    inner = use.name.removeprefix(f"{use.module}.").split(".")[:-1]
    if not all(_CLASS.fullmatch(part) for part in inner):
        return Effect.ACTS  # a module within a module: any other name can be reached through it
    if _is_value(name) or name in _ACCESSORS:
        return max((_effect_of_value(name, call) for call in calls), default=Effect.INERT)
    if name.startswith("torch."):
        return max((_effect_of_torch(name, call) for call in calls), default=_reference_of_torch(name))
    if _TYPES_ALONE.fullmatch(name) and not calls:
        return Effect.INERT
    if _is_of_python(use.name):
        return Effect.ACTS
    return max((_effect_of_foreign(name, call) for call in calls), default=Effect.INERT)


def _is_value(name: str) -> bool:
    if _VALUES.fullmatch(name) or _REBUILDERS.fullmatch(name):
        return True
    module, _, last = name.rpartition(".")
    found = getattr(builtins, last, None) if module == "builtins" else None
    return isinstance(found, type) and issubclass(found, BaseException)


def _effect_of_value(name: str, call: Call) -> Effect:
    """The effect of a constructor of plain values, which acts only if it is given something to call."""
    arguments = call.arguments
    if arguments is None:
        return Effect.INERT if name not in _ACCESSORS else Effect.ACTS
    if name == "builtins.getattr":
        return Effect.INERT if _is_member(arguments) else Effect.ACTS
    if name == "operator.getitem":
        of_typing = bool(arguments) and (arguments[0].text or "").startswith("typing.")
        return Effect.INERT if of_typing and arguments[0].kind == "global" else Effect.ACTS
    if name == "copyreg._reconstructor" or name.endswith(".multiarray._reconstruct"):  # no ``__init__`` runs
        return Effect.INERT if arguments and arguments[0].kind == "global" else Effect.ACTS
    if name in _CALLABLE_HOLDERS:
        return Effect.INERT
    given = [plain_name(one.text) for one in arguments if one.kind in ("global", "result") and one.text]
    known = all(one in _WEIGHTS or (_is_value(one) and one not in _CALLABLE_HOLDERS) for one in given)
    return Effect.INERT if known else Effect.ACTS


def _is_member(arguments: Sequence[Argument]) -> bool:
    """Whether the arguments are a class and the name of its member, such as an enumeration value."""
    if len(arguments) != 2 or arguments[0].kind != "global" or arguments[1].kind != "text":
        return False
    name = arguments[0].text or ""
    member = arguments[1].text or ""
    is_class = _CLASS.fullmatch(name.rpartition(".")[2]) is not None
    return is_class and member.isidentifier() and not member.startswith("_")


def _effect_of_torch(name: str, call: Call) -> Effect:
    rest = name.removeprefix("torch.")
    if rest.startswith("_utils._rebuild_"):  # makes sparse and quantized tensors
        return Effect.OBJECT
    if not _CLASS.fullmatch(rest.rpartition(".")[2]):
        return Effect.ACTS
    is_data = rest.startswith(_DATA_OF_TORCH) and not _ACTING.search(rest.rpartition(".")[2])
    if is_data and (call.only_new or _is_simple(call.arguments)):
        return Effect.INERT
    return Effect.OBJECT if call.only_new or rest.startswith(("nn.", "optim.")) else Effect.ACTS


def _reference_of_torch(name: str) -> Effect:
    """The effect of naming a global of torch without calling it; names for quantized tensors count more."""
    return Effect.OBJECT if name.startswith(("torch.per_", "torch.Q")) else Effect.INERT


def _effect_of_foreign(name: str, call: Call) -> Effect:
    """The effect of calling a global of a third-party library."""
    last = name.rpartition(".")[2]
    if not call.only_new and not _CLASS.fullmatch(last):
        return Effect.ACTS
    if _ACTING.search(last) or _ACTING_MODULES.fullmatch(name):
        return Effect.OBJECT
    return Effect.INERT if call.only_new or _is_simple(call.arguments) else Effect.OBJECT


def _is_simple(arguments: Sequence[Argument] | None) -> bool:
    """Whether the arguments are at most one number, word or table, like those of enumeration members."""
    if arguments is None or len(arguments) > 1:
        return False
    return all(
        one.kind in ("plain", "table") or (one.kind == "text" and bool(_WORD.fullmatch(one.text or "")))
        for one in arguments
    )

"""What a global that a pickle asks for can do when some program opens the pickle the ordinary way.

What the pickle does with the global decides. A name alone does nothing; a class whose ``__new__`` is called
gives an empty object; a constructor gets arguments and may use them; a function runs. Nothing is imported.
"""

from __future__ import annotations

import builtins
import enum
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what Python 2 called its modules and names
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .pickle_machine import Argument, Call, GlobalUse


class Effect(enum.IntEnum):
    """What a global can do, the worst last."""

    NONE = 0
    """Nothing: weights need it."""
    INERT = 1
    """It makes a value, or an object that gets its attributes and nothing else."""
    OBJECT = 2
    """It makes an object, or a tensor of another kind, by code that gets arguments of the pickle's choice."""
    ACTS = 3
    """It may run, import, open or write anything."""


_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble"
_TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
)
STORAGES = frozenset(
    [f"{module}.{kind}Storage" for module in ("torch", "torch.cuda") for kind in _KINDS.split()]
    + ["torch.storage.UntypedStorage", "torch.storage.TypedStorage"]
)
"""The classes of storages."""
DTYPES = frozenset(f"torch.{name}" for name in _TYPES.split())
"""The types of elements."""
_WEIGHTS = (
    STORAGES
    | DTYPES
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

_VALUES = re.compile(  # classes of Python's own library whose constructors compute a value and nothing else
    r"builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)"
    r"|(pathlib|pathlib\._local|pathlib\._abc|decimal|fractions|uuid|ipaddress|enum|numbers)\.[A-Z]\w+"
    r"|datetime\.(date|time|datetime|timedelta|timezone)"
    r"|collections\.(deque|defaultdict|ChainMap|UserDict|UserList|UserString)"
    r"|types\.(SimpleNamespace|MappingProxyType|NoneType|EllipsisType)"
    r"|array\.(array|_array_reconstructor)|re\._compile|random\.Random|time\.struct_time"
    r"|argparse\.Namespace|functools\.partial|logging\.getLogger|dataclasses\._\w+_TYPE"
)
_TYPES_ALONE = re.compile(r"typing\.[A-Z]\w+|collections\.abc\.[A-Z]\w+")  # never made, only named
_REBUILDERS = re.compile(  # functions and classes of numpy that make arrays, scalars and generators
    r"numpy\.(core|_core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|numpy\.(dtype|ndarray|bool_?|[a-z]+(8|16|32|64|128|256)|dtypes\.\w+DType)"
    r"|numpy\.random\._pickle\.__(randomstate|bit_generator|generator)_ctor"
    r"|numpy\.random\.bit_generator\.(__pyx_unpickle_SeedSequence|SeedSequence)"
    r"|numpy\.random\._\w+\.[A-Z]\w+|numpy\.random\.__RandomState_ctor"
)
_HOLDERS = frozenset({"builtins.getattr", "operator.getitem", "copyreg._reconstructor"})
_KEEPERS = frozenset({"collections.defaultdict", "functools.partial"})  # they keep what they are given
_DATA_OF_TORCH = ("optim.", "amp.", "cuda.amp.", "torch_version.", "distributed.fsdp.")
_IN_SOME_VERSIONS = re.compile(  # modules of Python's library, of which the Python that runs may have none
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
    """What each global of a pickle can do, given all the calls that the pickle asks for."""
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
        if plain_name(call.name) == "copyreg._reconstructor" and call.arguments:
            made = call.arguments[0].text or ""
            by_name.setdefault(made, []).append(replace(call, name=made, makes=True))
    return [(use, _effect(use, by_name.get(use.name or "", []))) for use in uses]


def script_effect(name: str | None) -> Effect:
    """What a global of a TorchScript archive can do, of which torch gives no choice."""
    if name is None:
        return Effect.ACTS
    own = name.startswith("__torch__.") and not name.startswith("__torch__.torch.classes.")
    return Effect.NONE if own or name in _SCRIPT else _effect_of_name(name)


_SCRIPT = STORAGES | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
}


def _effect_of_name(name: str) -> Effect:
    """The effect where nothing is known but a name: an object at best."""
    return (
        Effect.OBJECT
        if _CLASS.fullmatch(name.rpartition(".")[2]) and not _is_of_python(name)
        else Effect.ACTS
    )


def plain_name(name: str) -> str:
    """A global's name as Python 3 has it, where the pickle may have that of Python 2."""
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
    if _is_value(name) or name in _HOLDERS:
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
    """The effect of a constructor that does nothing itself, unless it is given what it would call."""
    arguments = call.arguments
    if arguments is None:
        return Effect.INERT if name not in _HOLDERS else Effect.ACTS
    if name == "builtins.getattr":
        return Effect.INERT if _is_member(arguments) else Effect.ACTS
    if name == "operator.getitem":
        of_typing = bool(arguments) and (arguments[0].text or "").startswith("typing.")
        return Effect.INERT if of_typing and arguments[0].kind == "global" else Effect.ACTS
    if name == "copyreg._reconstructor" or name.endswith(".multiarray._reconstruct"):  # no ``__init__`` runs
        return Effect.INERT if arguments and arguments[0].kind == "global" else Effect.ACTS
    if name in _KEEPERS:
        return Effect.INERT
    given = [plain_name(one.text) for one in arguments if one.kind in ("global", "result") and one.text]
    known = all(one in _WEIGHTS or (_is_value(one) and one not in _KEEPERS) for one in given)
    return Effect.INERT if known else Effect.ACTS


def _is_member(arguments: Sequence[Argument]) -> bool:
    """Whether they are a class and the name of something in it, as of an enumeration or a method."""
    if len(arguments) != 2 or arguments[0].kind != "global" or arguments[1].kind != "text":
        return False
    name = arguments[0].text or ""
    member = arguments[1].text or ""
    is_class = _CLASS.fullmatch(name.rpartition(".")[2]) is not None
    return is_class and member.isidentifier() and not member.startswith("_")


def _effect_of_torch(name: str, call: Call) -> Effect:
    rest = name.removeprefix("torch.")
    if rest.startswith("_utils._rebuild_"):  # of sparse and quantized tensors
        return Effect.OBJECT
    if not _CLASS.fullmatch(rest.rpartition(".")[2]):
        return Effect.ACTS
    is_data = rest.startswith(_DATA_OF_TORCH) and not _ACTING.search(rest.rpartition(".")[2])
    if is_data and (call.makes or _is_simple(call.arguments)):
        return Effect.INERT
    return Effect.OBJECT if call.makes or rest.startswith(("nn.", "optim.")) else Effect.ACTS


def _reference_of_torch(name: str) -> Effect:
    """The effect of naming something of torch: none, but that quantized tensors are no ordinary weights."""
    return Effect.OBJECT if name.startswith(("torch.per_", "torch.Q")) else Effect.INERT


def _effect_of_foreign(name: str, call: Call) -> Effect:
    """The effect of a call of what is neither of Python nor of torch."""
    last = name.rpartition(".")[2]
    if not call.makes and not _CLASS.fullmatch(last):
        return Effect.ACTS
    if _ACTING.search(last) or _ACTING_MODULES.fullmatch(name):
        return Effect.OBJECT
    return Effect.INERT if call.makes or _is_simple(call.arguments) else Effect.OBJECT


def _is_simple(arguments: Sequence[Argument] | None) -> bool:
    """Whether they are at most one number, word or table, as the members of enumerations are stored."""
    if arguments is None or len(arguments) > 1:
        return False
    return all(
        one.kind in ("plain", "table") or (one.kind == "text" and bool(_WORD.fullmatch(one.text or "")))
        for one in arguments
    )

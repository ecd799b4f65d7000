"""The schema of the JSON tables in a ``torch.export`` archive, checked field by field.

The schema follows ``torch._export.serde.schema``. When torch loads an archive or runs its graph, it
evaluates many of the texts (:mod:`.exported_text`) and does not check types. Here every field has a kind
that its value must match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.checkpoints.exported import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME_RULE, EXPRESSION_RULE, SPEC_RULE = "export-name", "export-expression", "export-spec"
_MOST_FAULTS = 20

_TEXTS: dict[str, tuple[str, Callable[[str], bool]]] = {  # kind: (rule that a bad text violates, test)
    "name": (NAME_RULE, texts.is_name),
    "argument": (NAME_RULE, texts.is_argument),
    "path": (NAME_RULE, texts.is_path),
    "plain": (NAME_RULE, texts.is_plain),
    "text": (NAME_RULE, texts.is_text),
    "device": (NAME_RULE, texts.is_device),
    "sources": (NAME_RULE, texts.is_sources),
    "expression": (EXPRESSION_RULE, texts.is_expression),
    "guard": (EXPRESSION_RULE, texts.is_guard),
}
_VALUES: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: _is_float(value),
}


def _fields(text: str) -> dict[str, str]:
    return dict(field.split(":", 1) for field in text.split())


_RECORDS = {
    "Program": """
        graph_module:GraphModule opset_version:{argument:int} range_constraints:{expression:Range}
        schema_version:Version verifiers:[argument] torch_version:plain guards_code:[guard]
    """,
    "Range": "min_val:int? max_val:int?",
    "Version": "major:int minor:int",
    "GraphModule": """
        graph:Graph signature:Signature module_call_graph:[ModuleCall] metadata:{argument:text}
        treespec_namedtuple_fields:{path:FieldNames}
    """,
    "FieldNames": "field_names:[name]",
    "Graph": """
        inputs:[GraphInput] outputs:[Argument] nodes:[Node] tensor_values:{name:TensorMeta}
        sym_int_values:{name:SymInt} sym_bool_values:{name:SymBool} sym_float_values:{name:SymFloat}
        custom_obj_values:{name:CustomObject} is_single_tensor_return:bool
    """,
    "Node": """
        target:target inputs:[NamedArgument] outputs:[Argument] metadata:Metadata
        is_hop_single_tensor_return:bool? name:name?
    """,
    "Metadata": """
        stack_trace:text nn_module_stack:stack source_fn_stack:sources torch_fn:plain custom:text
        from_node:text
    """,
    "NamedArgument": "name:argument arg:Argument kind:int?",
    "TensorMeta": """
        dtype:int sizes:[SymInt] requires_grad:bool device:Device strides:[SymInt] storage_offset:SymInt
        layout:int
    """,
    "Device": "type:device index:int?",
    "Expression": "expr_str:expression hint:Hint?",
    "Named": "name:name",
    "GraphArgument": "name:name graph:Graph",
    "CustomObject": "name:name class_fqn:plain",
    "Complex": "real:float imag:float",
    "Signature": "input_specs:[InputSpec] output_specs:[OutputSpec]",
    "UserInput": "arg:GraphInput",
    "ConstantInput": "name:name value:Constant",
    "ParameterInput": "arg:Named parameter_name:path",
    "BufferInput": "arg:Named buffer_name:path persistent:bool",
    "TensorConstantInput": "arg:Named tensor_constant_name:path",
    "ObjectInput": "arg:CustomObject custom_obj_name:path",
    "TokenInput": "arg:Named",
    "UserOutput": "arg:Argument",
    "BufferOutput": "arg:Named buffer_name:path",
    "ParameterOutput": "arg:Named parameter_name:path",
    "InputOutput": "arg:Named user_input_name:name",
    "ModuleCall": "fqn:path signature:CallSignature?",
    "CallSignature": """
        inputs:[Argument] outputs:[Argument] in_spec:in_spec out_spec:out_spec forward_arg_names:[name]?
    """,
    "Payload": "config:{path:Tensor}",
    "Tensor": "path_name:plain is_param:bool use_pickle:bool tensor_meta:TensorMeta?",
}
_UNIONS = {  # each value has exactly one of the fields
    "Hint": "as_int:int as_bool:bool as_float:float",
    "SymInt": "as_expr:Expression as_int:int",
    "SymFloat": "as_expr:Expression as_float:float",
    "SymBool": "as_expr:Expression as_bool:bool",
    "IntArgument": "as_name:name as_int:int",
    "FloatArgument": "as_name:name as_float:float",
    "BoolArgument": "as_name:name as_bool:bool",
    "OptionalTensor": "as_tensor:Named as_none:bool",
    "Constant": "as_none:bool as_int:int as_float:float as_string:plain as_bool:bool",
    "Argument": """
        as_none:bool as_tensor:Named as_tensors:[Named] as_int:int as_ints:[int] as_float:float
        as_floats:[float] as_string:text as_strings:[text] as_sym_int:IntArgument as_sym_ints:[IntArgument]
        as_scalar_type:int as_memory_format:int as_layout:int as_device:Device as_bool:bool as_bools:[bool]
        as_sym_bool:BoolArgument as_sym_bools:[BoolArgument] as_graph:GraphArgument
        as_optional_tensors:[OptionalTensor] as_custom_obj:CustomObject as_operator:target
        as_sym_float:FloatArgument as_sym_floats:[FloatArgument] as_optional_tensor:OptionalTensor
        as_complex:Complex as_nested_tensors:[[Named]] as_int_lists:[[int]] as_float_lists:[[float]]
        as_string_to_argument:{plain:Argument}
    """,
    "GraphInput": """
        as_none:bool as_tensor:Named as_int:int as_float:float as_bool:bool as_string:plain
        as_sym_int:IntArgument as_sym_float:FloatArgument as_sym_bool:BoolArgument as_custom_obj:CustomObject
    """,
    "InputSpec": """
        user_input:UserInput parameter:ParameterInput buffer:BufferInput tensor_constant:TensorConstantInput
        custom_obj:ObjectInput token:TokenInput constant_input:ConstantInput
    """,
    "OutputSpec": """
        user_output:UserOutput loss_output:TokenInput buffer_mutation:BufferOutput token:TokenInput
        gradient_to_parameter:ParameterOutput gradient_to_user_input:InputOutput
        user_input_mutation:InputOutput parameter_mutation:ParameterOutput
    """,
}
_ALL = {name: _fields(text) for name, text in (_RECORDS | _UNIONS).items()}


class UnknownFormError(Exception):
    """A table has an unknown field or a value of an unexpected type; the message says where."""


class Check:
    """Checks the tables of an archive and collects the results.

    Attributes:
        faults: Texts that torch would evaluate and that have no known form, as unique (rule, message).
        targets: Everything that the graphs call.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], None] = {}
        self.targets: set[str] = set()

    def check(self, table: Any, kind: str, source: str) -> None:
        """Check a table and everything in it.

        Args:
            table: The table, as parsed from JSON.
            kind: ``Program`` or ``Payload``.
            source: Name of the member that holds it, for messages.

        Raises:
            UnknownFormError: A field or type is not one that torch writes. The rest is checked first.
        """
        unknown = ""
        pending: list[tuple[Any, str, str]] = [(table, kind, source)]
        while pending:
            value, of, where = pending.pop()
            try:
                pending += self._inside(value, of, where)
            except UnknownFormError as error:
                unknown = unknown or str(error)
        if unknown:
            raise UnknownFormError(unknown)

    def _inside(self, value: Any, kind: str, where: str) -> Iterator[tuple[Any, str, str]]:
        """Check a value, and give its parts, each with its kind and its place, to be checked next."""
        if kind.endswith("?"):
            yield from () if value is None else [(value, kind[:-1], where)]
        elif kind.startswith("["):
            yield from ((one, kind[1:-1], where) for one in _typed(value, list, where))
        elif kind.startswith("{"):
            key_kind, value_kind = kind[1:-1].split(":", 1)
            for key, one in _typed(value, dict, where).items():
                self._text(key, key_kind, where)
                yield one, value_kind, where
        elif kind in _ALL:
            table = _typed(value, dict, where)
            known = _ALL[kind]
            yield from ((one, known[key], key) for key, one in table.items() if key in known)
            if odd := sorted(set(table) - set(known)):
                raise UnknownFormError(f"the field {odd[0][:60]!r} in {where}")
            if kind in _UNIONS and len(table) != 1:
                raise UnknownFormError(f"{len(table)} values of {where}")
        elif kind in _VALUES:
            if not _VALUES[kind](value):
                raise UnknownFormError(f"{str(value)[:60]!r} as {where}")
        else:
            self._text(_typed(value, str, where), kind, where)

    def _text(self, text: str, kind: str, where: str) -> None:
        if kind == "target":
            self.targets.add(text)
        elif kind in {"in_spec", "out_spec"}:
            if fault := texts.spec_fault(text, of_inputs=kind == "in_spec"):
                self._fault(SPEC_RULE, f"has an {kind} that {fault}")
        elif kind == "stack":
            if '"' in text or not texts.is_plain(text.replace("'", "")):
                self._fault(NAME_RULE, f"has a {where} that is no plain text: {text[:60]!r}")
        else:
            rule, is_one = _TEXTS[kind]
            if not is_one(text):
                what = "an expression that is no arithmetic" if rule == EXPRESSION_RULE else f"an odd {where}"
                self._fault(rule, f"has {what}: {text[:60]!r}")

    def _fault(self, rule: str, message: str) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults[rule, message] = None


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise UnknownFormError(f"{str(value)[:60]!r} as {where}")
    return value


def _is_float(value: Any) -> bool:
    """Whether a value is a JSON number, or one of the names that torch writes for infinity and NaN."""
    if isinstance(value, str):
        return value in {"Infinity", "-Infinity", "NaN"}
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)

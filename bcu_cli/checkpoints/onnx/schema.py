"""The schema of ONNX files (``onnx.proto`` of the ONNX project), and how they are recognised."""

from __future__ import annotations

from bcu_cli.checkpoints.onnx.protobuf import BYTES, VARINT, BrokenMessageError, Schema, fields

_MESSAGES = {
    "model": """
        1=ir_version:int 7=graph:graph 8=opset_import:*opset 14=metadata_props:*pair
        20=training_info:*training 25=functions:*function
    """,
    "opset": "1=domain:text 2=version:int",
    "pair": "1=key:text 2=value:text",
    "training": "1=initialization:graph 2=algorithm:graph",
    "function": "1=name:text 7=node:*node 10=domain:text 11=attribute_proto:*attribute",
    "graph": """
        1=node:*node 5=initializer:*tensor 11=input:*value 12=output:*value 15=sparse_initializer:*sparse
    """,
    "node": "1=input:*text 2=output:*text 4=op_type:text 5=attribute:*attribute 7=domain:text",
    "attribute": """
        1=name:text 2=f:float 3=i:int 4=s:bytes 5=t:tensor 6=g:graph 7=floats:*numbers 8=ints:ints
        10=tensors:*tensor 11=graphs:*graph 20=type:int 21=ref_attr_name:text 22=sparse_tensor:sparse
        23=sparse_tensors:*sparse
    """,
    "tensor": """
        1=dims:ints 2=data_type:int 3=segment:bytes 4=float_data:*numbers 5=int32_data:*varints
        6=string_data:*bytes 7=int64_data:*varints 8=name:text 9=raw_data:bytes 10=double_data:*numbers
        11=uint64_data:*varints 13=external_data:*pair 14=data_location:int
    """,
    "sparse": "1=values:tensor 2=indices:tensor 3=dims:ints",
    "value": "1=name:text 2=type:type",
    "type": "1=tensor_type:tensor_type",
    "tensor_type": "1=elem_type:int 2=shape:shape",
    "shape": "1=dim:*dimension",
    "dimension": "1=dim_value:int 2=dim_param:text",
}


def _fields(text: str) -> dict[int, tuple[str, str]]:
    known = {}
    for field in text.split():
        number, name, kind = field.replace("=", ":").split(":")
        known[int(number)] = (name, kind)
    return known


SCHEMA: Schema = {name: _fields(text) for name, text in _MESSAGES.items()}
"""The messages and fields that bcu reads; it ignores others, such as descriptions and device hints."""

_VERSION, _GRAPH = 1, 7
_NAMES = (2, 3, 4)  # fields with the producer's name, its version, and the model's domain
_MODEL_WIRES = dict.fromkeys((_VERSION, 5), VARINT)
_MODEL_WIRES |= dict.fromkeys((*_NAMES, 6, _GRAPH, 8, 14, 20, 25, 26), BYTES)
_GRAPH_FIELDS = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})
_NEWEST_IR = 63  # an upper limit; the newest version today is 13


def looks_like_onnx(head: bytes) -> bool:
    """Whether a file with these first bytes is an ONNX model.

    ONNX files have no signature. Writers put the fields in the order of their numbers: first the version of
    the format, then texts about the producer, then the graph. Other protobufs that begin with the same fields
    (TensorFlow's saved models) have no text or graph in the places where ONNX has them.
    """
    seen: set[int] = set()
    try:
        for number, wire, value in fields(memoryview(head), is_cut=True):
            if _MODEL_WIRES.get(number) != wire or (not seen and number != _VERSION):
                return False
            if number == _VERSION and not 1 <= value <= _NEWEST_IR:
                return False
            if number in _NAMES and not str(value, "utf-8").isprintable():
                return False
            if number == _GRAPH and not _begins_a_graph(bytes(value[:1])):
                return False
            seen.add(number)
    except (UnicodeDecodeError, BrokenMessageError):
        pass  # the file may be cut short: the fields before the error decide
    return bool(seen & {_NAMES[0], _GRAPH})


def _begins_a_graph(tag: bytes) -> bool:
    return not tag or (tag[0] & 7 == BYTES and tag[0] >> 3 in _GRAPH_FIELDS)

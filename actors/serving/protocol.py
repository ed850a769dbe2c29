"""Messages of the Open Inference Protocol's gRPC form, version 2, made when this is imported.

They lie in a pool of descriptors of their own. Other programs of the protocol, Triton's client among them,
register the same names for the whole process, which takes each name once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_TENSOR = "string name, string datatype, int64* shape"
_INFER = "string model_name, string model_version, string id, InferParameter{} parameters"
FIELDS: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": (
        "string name, string* versions, string platform, TensorMetadata* inputs, TensorMetadata* outputs"
    ),
    "InferParameter": (
        "bool bool_param, int64 int64_param, string string_param, double double_param, uint64 uint64_param"
    ),
    "InferTensorContents": (
        "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
        "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents"
    ),
    "InferInputTensor": f"{_TENSOR}, InferParameter{{}} parameters, InferTensorContents contents",
    "InferRequestedOutputTensor": "string name, InferParameter{} parameters",
    "ModelInferRequest": (
        f"{_INFER}, InferInputTensor* inputs, InferRequestedOutputTensor* outputs, bytes* raw_input_contents"
    ),
    "InferOutputTensor": f"{_TENSOR}, InferParameter{{}} parameters, InferTensorContents contents",
    "ModelInferResponse": f"{_INFER}, InferOutputTensor* outputs, bytes* raw_output_contents",
}
"""Message → its fields, numbered from 1 as they stand. `*` repeats one; `{}` maps names to it."""
CHOICES: Mapping[str, str] = {"InferParameter": "parameter_choice"}
"""Message → what the choice is called that all its fields are of."""
METHODS = tuple(name.removesuffix("Request") for name in FIELDS if name.endswith("Request"))
"""Of the service; each takes its request and gives its response."""

_FIELD = re.compile(r"(?P<type>\w+)(?P<many>\*|\{\})? (?P<name>\w+)")


def message(name: str) -> type[Message]:
    """The class of a message, by its name in `FIELDS`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="open_inference_protocol.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in FIELDS.items():
        _describe(file.message_type.add(name=name), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return pool


def _describe(described: descriptor_pb2.DescriptorProto, fields: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    choice = CHOICES.get(described.name)
    if choice is not None:
        described.oneof_decl.add(name=choice)
    for number, found in enumerate(_FIELD.finditer(fields), start=1):
        kind, name = found["type"], found["name"]
        if found["many"] == "{}":  # on the wire a map is a list of pairs
            entry = f"{name.title()}Entry"
            pair = described.nested_type.add(name=entry)
            pair.options.map_entry = True
            _describe(pair, f"string key, {kind} value")
            kind = f"{described.name}.{entry}"
        field = described.field.add(
            name=name,
            number=number,
            label=kinds.LABEL_REPEATED if found["many"] else kinds.LABEL_OPTIONAL,
        )
        if kind[0].isupper():
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
        if choice is not None:
            field.oneof_index = 0


_POOL = _pool()

"""Our messages are the protocol's: Triton's client, which has its own, reads and writes the same bytes."""

import pytest

from eagleray.actors.serving.protocol import FIELDS, METHODS, SERVICE, message

theirs = pytest.importorskip("tritonclient.grpc.service_pb2")


def test_fields_have_the_names_numbers_and_types_that_triton_gives_them():
    seen = set()

    def compare(ours, other):
        if ours.full_name in seen:
            return
        seen.add(ours.full_name)
        assert {field.name for field in ours.fields} == {field.name for field in other.fields}
        for field in ours.fields:
            same = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated)
            assert (field.containing_oneof is None) == (same.containing_oneof is None)
            if field.message_type is not None:
                compare(field.message_type, same.message_type)

    for name in FIELDS:
        if name in theirs.DESCRIPTOR.message_types_by_name:
            compare(message(name).DESCRIPTOR, theirs.DESCRIPTOR.message_types_by_name[name])
    assert {f"inference.{name}" for name in FIELDS} <= seen


def test_methods_are_the_services():
    (service,) = theirs.DESCRIPTOR.services_by_name.values()
    assert service.full_name == SERVICE
    for name in METHODS:
        method = service.methods_by_name[name]
        assert (method.input_type.name, method.output_type.name) == (f"{name}Request", f"{name}Response")


def test_what_one_writes_the_other_reads():
    ours = message("ModelInferRequest")(model_name="embed", id="7", raw_input_contents=[b"\0\1"])
    ours.parameters["priority"].int64_param = 3
    ours.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.append(b"a")
    read = theirs.ModelInferRequest.FromString(ours.SerializeToString())
    assert str(read) == str(ours)
    assert message("ModelInferRequest").FromString(read.SerializeToString()) == ours

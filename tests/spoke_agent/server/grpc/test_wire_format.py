"""Our own description of the messages is the public one: held against the descriptors of an unmodified client."""

import pytest
from tritonclient.grpc import service_pb2

from spoke_agent.server.grpc.messages import MESSAGES, SERVICE


def facts(field):
    message, choice = field.message_type, field.containing_oneof
    return (
        field.number,
        field.type,
        field.is_repeated,
        message.full_name if message else None,
        choice.name if choice else None,
        field.enum_type.full_name if field.enum_type else None,
    )


def walk(ours, theirs):
    for field in ours.fields:
        assert facts(field) == facts(theirs.fields_by_name[field.name]), field.full_name
    for inner in ours.nested_types:
        other = theirs.nested_types_by_name[inner.name]
        assert inner.GetOptions().map_entry == other.GetOptions().map_entry
        walk(inner, other)


@pytest.mark.parametrize("name", list(MESSAGES))
def test_every_field_has_the_public_number_and_type(name):
    theirs = getattr(service_pb2, name, None) or service_pb2.model__config__pb2.__dict__[name]
    walk(MESSAGES[name].DESCRIPTOR, theirs.DESCRIPTOR)


def test_the_data_types_have_the_public_numbers():
    ours = MESSAGES["ModelInput"].DESCRIPTOR.fields_by_name["data_type"].enum_type
    theirs = service_pb2.model__config__pb2.DataType.DESCRIPTOR
    assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in theirs.values}


def test_the_service_has_the_public_name():
    assert service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == SERVICE

"""Messages that nobody would write: drawn from descriptors, and bytes with changes."""

import struct

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from serve.proto import inference_pb2 as pb

ODD_INTS = [0, 1, 2, 11, 12, 20, 21, 63, 64, 128, 129, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
ODD_TEXTS = ["", "a", "abc", "tiny", "é", "\0", "￿", "\N{GRINNING FACE}", "z" * 300, "{}", "(" * 99]
#: So that what is served ends soon; larger ones are refused before.
MOST_WORK = 2000


def _scalars(field: FieldDescriptor) -> st.SearchStrategy:
    match field.type:
        case FieldDescriptor.TYPE_UINT32:
            return st.sampled_from(ODD_INTS) | st.integers(0, 12)
        case FieldDescriptor.TYPE_UINT64:
            return st.sampled_from([0, 1, 2**63, 2**64 - 1])
        case FieldDescriptor.TYPE_INT32:
            return st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)])
        case FieldDescriptor.TYPE_FLOAT:
            return st.floats(width=32) | st.floats(0, 1, width=32)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_STRING:
            return st.sampled_from(ODD_TEXTS) | st.text("abcdefghijkl", max_size=9)
    raise AssertionError(f"{field.full_name}: no request has such a field yet")


@st.composite
def messages(draw, descriptor: Descriptor):
    """A message of this type, with any of its fields; sometimes with others."""
    message = message_factory.GetMessageClass(descriptor)()
    names = [field.name for field in descriptor.fields]
    chosen = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    for field in map(descriptor.fields_by_name.get, chosen):
        if field.message_type is None:
            values = _scalars(field)
        elif field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            entries = st.dictionaries(_scalars(entry["key"]), _scalars(entry["value"]), max_size=5)
            getattr(message, field.name).update(draw(entries))
            continue
        else:
            values = messages(field.message_type)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values, max_size=5)))
        elif field.message_type is None:
            setattr(message, field.name, draw(values))
        else:
            getattr(message, field.name).CopyFrom(draw(values))
    if draw(st.integers(0, 9)) == 0:
        message.MergeFromString(draw(_unknown_fields()))
    return message


@st.composite
def _unknown_fields(draw) -> bytes:
    number = draw(st.sampled_from([500, 2047]))
    kind = draw(st.sampled_from([0, 1, 2, 5]))
    tag = _varint(number << 3 | kind)
    match kind:
        case 0:
            return tag + _varint(draw(st.integers(0, 2**64 - 1)))
        case 1:
            return tag + struct.pack("<d", draw(st.floats()))
        case 2:
            data = draw(st.binary(max_size=50))
            return tag + _varint(len(data)) + data
    return tag + struct.pack("<f", draw(st.floats(width=32)))


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """The bytes with some of them flipped, cut off, doubled, or replaced by huge numbers."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "double", "huge", "insert", "drop"])):
            case "flip" if at < len(data):
                flipped = data[at] ^ 1 << draw(st.integers(0, 7))
                data = data[:at] + bytes([flipped]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "double":
                data = data[:at] + data
            case "huge":
                data = data[:at] + b"\xff" * draw(st.integers(4, 10)) + b"\x01" + data[at:]
            case "insert":
                data = data[:at] + draw(st.binary(max_size=8)) + data[at:]
            case "drop":
                data = data[:at] + data[at + draw(st.integers(1, 8)) :]
    return data


def bounded(data: bytes) -> bool:
    """Whether a request, if it is one, asks for little enough to wait for it."""
    try:
        request = pb.GenerateRequest.FromString(data)
    except Exception:
        return True
    num_outputs = request.sampling.n if request.sampling.HasField("n") else 1
    return num_outputs > 128 or num_outputs * 64 <= MOST_WORK

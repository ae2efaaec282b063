"""The messages of `inference.GRPCInferenceService`, described here in a few lines and built at import: no generated code.

A line is a message: its name, then its fields as `number name type`. A type is a scalar of protobuf, the name of a message, or
`{X}` for a map from text to X; `*` after it means repeated, `?` a choice (oneof). The pool is our own, so that a client library
in the same process may define the same names.
Source: the KServe Open Inference Protocol v2 (gRPC), with Triton's parameters, model configuration, statistics and repository.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory  # type: ignore[import-untyped]

__all__ = ["MESSAGES", "SERVICE", "fill"]

SERVICE: Final = "inference.GRPCInferenceService"

_MESSAGES: Final = """
ServerLiveRequest
ServerLiveResponse: 1 live bool
ServerReadyRequest
ServerReadyResponse: 1 ready bool
ModelReadyRequest: 1 name string, 2 version string
ModelReadyResponse: 1 ready bool
ServerMetadataRequest
ServerMetadataResponse: 1 name string, 2 version string, 3 extensions string*
ModelMetadataRequest: 1 name string, 2 version string
ModelMetadataResponse: 1 name string, 2 versions string*, 3 platform string, 4 inputs .TensorMetadata*, 5 outputs .TensorMetadata*
ModelMetadataResponse.TensorMetadata: 1 name string, 2 datatype string, 3 shape int64*
InferParameter: 1 bool_param bool?, 2 int64_param int64?, 3 string_param string?, 4 double_param double?, 5 uint64_param uint64?
InferTensorContents: 1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*, 4 uint_contents uint32*, \
5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*, 8 bytes_contents bytes*
ModelInferRequest: 1 model_name string, 2 model_version string, 3 id string, 4 parameters {InferParameter}, \
5 inputs .InferInputTensor*, 6 outputs .InferRequestedOutputTensor*, 7 raw_input_contents bytes*
ModelInferRequest.InferInputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters {InferParameter}, \
5 contents InferTensorContents
ModelInferRequest.InferRequestedOutputTensor: 1 name string, 2 parameters {InferParameter}
ModelInferResponse: 1 model_name string, 2 model_version string, 3 id string, 4 parameters {InferParameter}, \
5 outputs .InferOutputTensor*, 6 raw_output_contents bytes*
ModelInferResponse.InferOutputTensor: 1 name string, 2 datatype string, 3 shape int64*, 4 parameters {InferParameter}, \
5 contents InferTensorContents
RepositoryIndexRequest: 1 repository_name string, 2 ready bool
RepositoryIndexResponse: 1 models .ModelIndex*
RepositoryIndexResponse.ModelIndex: 1 name string, 2 version string, 3 state string, 4 reason string
ModelStatisticsRequest: 1 name string, 2 version string
ModelStatisticsResponse: 1 model_stats ModelStatistics*
ModelStatistics: 1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64, 5 execution_count uint64, \
6 inference_stats InferStatistics
InferStatistics: 1 success StatisticDuration, 2 fail StatisticDuration, 3 queue StatisticDuration, \
4 compute_input StatisticDuration, 5 compute_infer StatisticDuration, 6 compute_output StatisticDuration
StatisticDuration: 1 count uint64, 2 ns uint64
ModelConfigRequest: 1 name string, 2 version string
ModelConfigResponse: 1 config ModelConfig
ModelConfig: 1 name string, 2 platform string, 4 max_batch_size int32, 5 input ModelInput*, 6 output ModelOutput*, \
17 backend string
ModelInput: 1 name string, 2 data_type DataType, 4 dims int64*
ModelOutput: 1 name string, 2 data_type DataType, 3 dims int64*
"""
_DATA_TYPES: Final = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"

_Field: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    word: getattr(_Field, f"TYPE_{word.upper()}")
    for word in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def fill(name: str, values: dict[str, Any]) -> bytes:
    """The bytes of a message from plain values; what the message has no field for is left out."""
    message: bytes = json_format.ParseDict(values, MESSAGES[name](), ignore_unknown_fields=True).SerializeToString()
    return message


def _described() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, word in enumerate(_DATA_TYPES.split()):
        types.value.add(name=f"TYPE_{word}", number=number)
    found: dict[str, Any] = {}
    for line in _MESSAGES.strip().splitlines():
        path, _, fields = line.partition(":")
        outer, _, name = path.rpartition(".")
        message = found[path] = found[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        for field in filter(None, fields.split(",")):
            _add(message, path, *field.split())
    return file


def _add(message: Any, path: str, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind.endswith("*") or kind.startswith("{"):
        field.label = _Field.LABEL_REPEATED
    kind = kind.rstrip("*?")
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, path, "1", "key", "string")
        _add(entry, path, "2", "value", kind.strip("{}"))
        kind = f".{entry.name}"
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".inference.{path}{kind}" if kind.startswith(".") else f".inference.{kind}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_described().SerializeToString())
    file = pool.FindFileByName("open_inference.proto")
    return {name: message_factory.GetMessageClass(message) for name, message in file.message_types_by_name.items()}


MESSAGES: Final[dict[str, Any]] = _classes()
"""Message classes by name."""

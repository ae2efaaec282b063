"""The inference engines: ONNX Runtime and OpenVINO, the choice between them, and their measurement."""

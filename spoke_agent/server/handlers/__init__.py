"""The use cases behind REST and gRPC: infer, metadata, metrics, tracing."""

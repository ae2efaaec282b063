"""The gRPC face of the Open Inference Protocol v2, an extra (`spokeshave[grpc]`): the same models and queues as over HTTP."""

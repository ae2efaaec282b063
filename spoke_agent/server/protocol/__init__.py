"""Request and response bodies of the Open Inference Protocol v2 as tensors."""

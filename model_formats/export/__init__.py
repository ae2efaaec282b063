"""From what people have (a torch module, a .pt2, an ONNX file, a Hugging Face folder) to one checked fp32 ONNX file with a
head that can be fitted.
"""

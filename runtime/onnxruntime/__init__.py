"""Networks run by ONNX Runtime, on the CPU or by one of its GPU providers."""

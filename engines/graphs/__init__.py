"""Passes over ONNX graphs. Needs neither torch nor a compiler."""

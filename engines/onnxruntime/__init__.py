"""Graphs that ONNX Runtime has optimised for one CPU."""

"""The CUDA device: TensorRT and TensorRT-RTX engines on streams, driven through cuda-python."""

"""From weights to a bundle: reads checkpoints, merges LoRA, exports each network to ONNX."""

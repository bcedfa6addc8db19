"""This runtime next to other ways to run the same networks: `vsr-build alternatives`, and `vsr-build time` for one."""

RUNTIME, PLAIN, TORCH, COMPILED = "runtime", "onnxruntime", "torch", "torch-compile"
WAYS = (RUNTIME, PLAIN, TORCH, COMPILED)
IN_TORCH = (TORCH, COMPILED)
LEAST = 2  # frames, clips or runs: the first is warm-up

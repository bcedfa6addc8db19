"""This runtime beside other ways to run the same networks: `build.py alternatives`, and `build.py time` for one way."""

RUNTIME, PLAIN, TORCH, COMPILED = "runtime", "onnxruntime", "torch", "torch-compile"
WAYS = (RUNTIME, PLAIN, TORCH, COMPILED)
IN_TORCH = (TORCH, COMPILED)
LEAST = 2  # frames: the first is warm-up

"""The GPU kernels: written in Triton, compiled ahead of time on machines without a GPU.

`gated_topk.triton_kernel` is the operator's, `kernels.blend` makes one picture of overlapping tiles. `build` compiles
them for a target, `launch` says how a host launches the result, `roofline` predicts the operator's time from its
instructions. Hosts need `launch` only, or just its JSON.
"""

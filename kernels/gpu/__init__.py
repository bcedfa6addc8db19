"""The operator's GPU kernel: written in Triton, compiled ahead of time on machines without a GPU.

`triton_kernel` is the kernel, `build` compiles it for a target, `launch` says how a host launches the result,
`roofline` predicts its time from its instructions. Hosts need `launch` only, or just its JSON.
"""

"""DLoRAL: one step on Stable Diffusion 2.1, two adapters, flow and cross-frame retrieval."""

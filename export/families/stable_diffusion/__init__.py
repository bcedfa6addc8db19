"""What families on Stable Diffusion 2.1 share."""

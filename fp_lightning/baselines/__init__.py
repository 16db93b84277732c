"""The methods that FramePainter is compared with in the paper (Table 1, Fig. 12), over diffusers' Stable Diffusion."""

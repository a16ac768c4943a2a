"""StyleGallery: training-free restyling after any number of reference images, region by region.

After "StyleGallery" (CVPR 2026, arXiv 2603.10354) and its published code: regions are clusters of
a diffusion model's features (`features`, `clusters`), each is matched with the most similar region
of the references (`matching`), and the latents are optimised until the self-attention of every
region reproduces the texture of its match (`energy`). Where the released code and the paper
differ, or the code has a bug, the settings (`config`) offer both variants.
"""

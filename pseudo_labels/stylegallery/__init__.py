"""StyleGallery: training-free restyling after any number of reference pictures, region by region.

After "StyleGallery" (CVPR 2026, arXiv 2603.10354) and its published code: regions are clusters of
a diffusion model's features (`features`, `clusters`), each finds the most similar region of the
references (`matching`), and the latents are optimised until every region's self-attention reads
the texture of its match (`energy`). Where the released code and the paper differ, or the code has
a fault, the settings (`config`) name both ways.
"""

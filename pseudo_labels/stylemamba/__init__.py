"""StyleMamba: restyling by words with a conditional state-space model on a codec's latents.

After Wang and Liu, "StyleMamba: State Space Model for Efficient Text-driven Image Style Transfer"
(ECAI 2024, arXiv 2405.05027). Published are the three parts (a latent codec, a style fusion module
that is a conditional state-space model, a joint text and image encoder), the names of the losses
and the claims. **The layer sizes, the exact loss formulas and their weights are not available to
us: everything of that kind here is a reconstruction** and is marked as such.
"""

"""The diffusion models whose features and attention StyleGallery reads."""

"""Target generators.

`base` holds what stylizers share; they restyle whole images by exact filters (`functional`),
painting networks (`painting`) or diffusion pipelines (`diffusion`). `registry` reads styles files.
"""

"""`regionroute mamba`: fit a style given in words or as a picture, and restyle photos with it."""

import sys
from collections.abc import Callable

from pseudo_labels.stylemamba import command_apply, command_fit
from regionroute.errors import UserError, command, nearest
from regionroute.models.devices import quiet_libraries

_USAGE = """\
usage: regionroute mamba ACTION [arguments]

StyleMamba: restyle photos after words or after a picture, on a codec's latents. The layer sizes
and the exact losses are a reconstruction: the paper's are not public.

actions:
  fit    one style, in some forty steps on one or a few photos
  train  one module for a bank of styles
  apply  restyle a photo, or one object of it

a style in words (SigLIP and a Stable-Diffusion VAE, by hub id or folder):
  regionroute mamba fit --prompt "Van Gogh starry night" --images photos/ --out styles/starry
  regionroute mamba apply photo.jpg --style styles/starry --strength 0.8 --out out.png

a style picture (the weights of a VGG16 or VGG19 are all that is needed):
  regionroute mamba fit --picture monet.jpg --images photo.jpg --out styles/monet \\
      --vgg vgg16.safetensors --vae patch

`regionroute mamba ACTION --help` explains one action."""

_ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "fit": command_fit.fit_main,
    "train": command_fit.train_main,
    "apply": command_apply.apply_main,
}


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute mamba ACTION …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: an unknown action, or anything else the user has to mend.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if argv[0] not in _ACTIONS:
        near = nearest(argv[0], _ACTIONS)
        raise UserError(
            f"there is no action {argv[0]!r}; did you mean {near}? `regionroute mamba --help` "
            "lists all"
        )
    quiet_libraries()
    return _ACTIONS[argv[0]](argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())

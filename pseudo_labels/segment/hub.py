"""Networks of transformers, from a local folder or the hub, with every failure in one sentence."""

from pathlib import Path
from typing import Any

from regionroute.errors import UserError
from regionroute.files import is_hub_id
from regionroute.hub_names import commit_of_model, hub_arguments, split_revision, used_name
from regionroute.pretrained import load_errors, load_pretrained

_HUB_REMEDY = (
    "download it first and give its folder, check the name, or do without the hub: "
    "--segmenter offline, --grounder salient"
)


def from_hub(source: str, auto_class: str, what: str) -> tuple[Any, Any]:
    """Load a network and its processor.

    Args:
        source: local folder or hub id, also ``owner/name@revision``.
        auto_class: a class of transformers, such as "AutoModelForMaskGeneration".
        what: the kind of network, for messages, such as "a segmenter (SAM)".

    Returns:
        The processor and the network, frozen and in evaluation mode.

    Raises:
        UserError: it is not there, not of that kind, damaged, or incomplete.
    """
    import transformers

    check_source(source, what)
    kind, parts = getattr(transformers, auto_class), (transformers.AutoProcessor,)
    model, processor = load_pretrained(source, source, what, kind, parts, hub_remedy=_HUB_REMEDY)
    return processor, model.eval().requires_grad_(False)


def model_type(source: str, what: str) -> str:
    """The "model_type" of a network's configuration.

    Raises:
        UserError: there is no such folder or hub id, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    check_source(source, what)
    repository, where = hub_arguments(source)
    with load_errors(source, source, what, _HUB_REMEDY):
        return str(AutoConfig.from_pretrained(repository, **where).model_type)


def check_source(source: str, what: str) -> None:
    """Refuse a source that is neither a folder with a configuration nor of the form of a hub id.

    Raises:
        UserError: no such folder, a file, or a folder without config.json.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{source}: no config.json in this folder, copy the whole of {what}")
    elif path.exists() or not is_hub_id(split_revision(source)[0]):
        raise UserError(f"{source}: no such folder; give the folder or the hub id of {what}")


def provenance_name(source: str, model: Any, kind: str | None = None) -> str:
    """Kind and name of a network, with the commit it was loaded from."""
    name = Path(used_name(source, commit_of_model(model))).name
    return f"{kind or model.config.model_type} {name}"

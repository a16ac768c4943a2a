"""Networks of transformers, from a local folder or the hub, with every failure in one sentence."""

import contextlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regionroute.errors import UserError
from regionroute.files import is_hub_id
from regionroute.hub_names import commit_of_model, hub_arguments, split_revision, used_name


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

    from regionroute.models.loading import quiet  # brings diffusers along

    local = check_source(source, what)
    repository, where = hub_arguments(source)
    kind = getattr(transformers, auto_class)
    try:
        with quiet() if local else contextlib.nullcontext():
            model, report = kind.from_pretrained(repository, output_loading_info=True, **where)
            processor = transformers.AutoProcessor.from_pretrained(repository, **where)
    # What the library raises on files that are missing, damaged or something else.
    except (
        OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError, ImportError
    ) as error:  # fmt: skip
        raise _explained(source, what, error, local) from error
    if report["missing_keys"]:  # it fills these with random numbers
        first = min(report["missing_keys"])
        raise UserError(f"{source}: its weights lack {first}, copy them again")
    return processor, model.eval().requires_grad_(False)


def model_type(source: str, what: str) -> str:
    """The "model_type" of a network's configuration.

    Raises:
        UserError: there is no such folder or hub id, or its configuration cannot be read.
    """
    from transformers import AutoConfig

    local = check_source(source, what)
    repository, where = hub_arguments(source)
    try:
        return str(AutoConfig.from_pretrained(repository, **where).model_type)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _explained(source, what, error, local) from error


def check_source(source: str, what: str) -> bool:
    """Whether a source is a local folder; refuses what is neither that nor the form of a hub id.

    Raises:
        UserError: no such folder, a file, or a folder without config.json.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{source}: no config.json in this folder, copy the whole of {what}")
        return True
    if path.exists() or not is_hub_id(split_revision(source)[0]):
        raise UserError(f"{source}: no such folder; give the folder or the hub id of {what}")
    return False


def provenance_name(source: str, model: Any, kind: str | None = None) -> str:
    """Kind and name of a network, with the commit it was loaded from."""
    name = Path(used_name(source, commit_of_model(model))).name
    return f"{kind or model.config.model_type} {name}"


def _explained(source: str, what: str, error: Exception, local: bool) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    problem = (
        f"this folder does not hold {what}, or it is damaged"
        if local
        else f"the hub cannot be reached or has no such repository of {what}: download it first "
        "and give its folder, check the name, or do without the hub: --segmenter offline, "
        "--grounder salient"
    )
    return UserError(f"{source}: {problem} ({reason})")

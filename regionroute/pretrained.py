"""Loads networks of transformers and diffusers, with every failure in one sentence."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from regionroute.errors import UserError, first_line
from regionroute.hub_names import commit_of_model, hub_arguments, used_name

# What the two libraries raise for files that are missing, damaged or of another kind.
LOAD_ERRORS = (
    *(OSError, SafetensorError, ValueError, RuntimeError),
    *(LookupError, TypeError, AttributeError, ImportError),
)
HUB_REMEDY = "check the name and the connection, or download it and give the folder"


def load_pretrained(
    label: str,
    name: str,
    what: str,
    kind: Any,
    parts: Sequence[Any] = (),
    *,
    hub_remedy: str = HUB_REMEDY,
    **options: Any,
) -> list[Any]:
    """A network and what belongs to it, such as its processor, all of one commit.

    Args:
        label: names the model in messages, such as "--clip NAME".
        name: folder or hub id, also ``owner/name@revision``.
        what: the kind of model, for messages, such as "a segmenter (SAM)".
        kind: the network's (auto) class.
        parts: the other classes to load from the same place.
        hub_remedy: what to do if it cannot be had from the hub.
        options: further ones of the network's ``from_pretrained``.

    Returns:
        The network and the parts, in their order.

    Raises:
        UserError: not found, not reachable, of another kind, damaged or incomplete.
    """
    source, where = hub_arguments(name)
    with load_errors(label, name, what, hub_remedy):
        network, report = kind.from_pretrained(source, output_loading_info=True, **options, **where)
        source, where = hub_arguments(used_name(name, commit_of_model(network)))
        others = [part.from_pretrained(source, **where) for part in parts]
    check_complete(label, report)
    return [network, *others]


@contextlib.contextmanager
def load_errors(label: str, name: str, what: str, hub_remedy: str = HUB_REMEDY) -> Iterator[None]:
    """Turns what goes wrong while a model loads into one sentence; no progress bars for folders.

    Args:
        label: as for `load_pretrained`.
        name: as for `load_pretrained`.
        what: as for `load_pretrained`.
        hub_remedy: as for `load_pretrained`.

    Raises:
        UserError: in place of the libraries' errors.
    """
    local = Path(name).expanduser().is_dir()
    try:
        with quiet() if local else contextlib.nullcontext():
            yield
    except UserError:  # a ValueError
        raise
    except LOAD_ERRORS as error:
        problem = (
            f"this folder does not hold {what}, or a part of it is missing or damaged"
            if local
            else f"no such folder, and the hub cannot be reached or has no such model: {hub_remedy}"
        )
        raise UserError(f"{label}: cannot be loaded, {problem} ({first_line(error)})") from error


def check_complete(label: str, report: Mapping[str, Any]) -> None:
    """Refuses a network whose weights are missing or of other shapes.

    Both libraries fill these with random numbers.

    Args:
        label: names the network in messages.
        report: what ``from_pretrained`` tells with ``output_loading_info``.

    Raises:
        UserError: there is one.
    """
    # Of other shapes: names, or tuples that begin with them.
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    lacking = [*report["missing_keys"], *mismatched]
    if lacking:
        first = min(lacking)
        raise UserError(f"{label}: its weights lack {first}, copy them again")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Disables progress bars of both libraries, for local files, which load quickly."""
    names = ("transformers.utils.logging", "diffusers.utils.logging")
    # A library that is not imported shows none, and its import may take seconds.
    bars = [sys.modules[name] for name in names if name in sys.modules]
    shown = [bar for bar in bars if bar.is_progress_bar_enabled()]
    for bar in shown:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for bar in shown:
            bar.enable_progress_bar()

"""Settings of the studio: what it offers, who may use it, and its limits."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from regionroute.config.base import Count, Name, Positive, Section
from regionroute.errors import UserError
from regionroute.files import check_input_file
from regionroute.models.embedded import NAMES, USUAL

AUTH_VARIABLE = "REGIONROUTE_AUTH"


class StudioSettings(Section):
    """Every setting of `regionroute serve`; a YAML file of these configures a server of a team."""

    title: Name = Field("RegionRoute Studio", description="heading of the page")
    host: Name = Field("127.0.0.1", description="address to listen on; 0.0.0.0: the whole network")
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0: any free one")
    share: bool = Field(False, description="make a public link through Gradio's relay")
    mcp: bool = Field(False, description="serve the endpoints to agents by Gradio's MCP server")
    auth: Name | None = Field(
        None, description=f"file with a line user:password per user; else ${AUTH_VARIABLE}"
    )
    bases: list[Name] = Field(
        [USUAL, *(name for name in NAMES if name != USUAL)],
        min_length=1,
        description="bases to choose from, the first is the default",
    )
    experts: dict[str, str] = Field({}, description="further experts to choose from, name: folder")
    data: list[Name] = Field([], description="folders whose data sets the data tab may open")
    device: Name | None = Field(None, description="cpu, cuda, …; null: a GPU if there is one")
    dtype: Name = Field(
        "float32", pattern="^(float32|bfloat16|float16)$", description="of networks"
    )
    quantize: Name | None = Field(None, pattern="^(nf4|fp8)$", description="nf4, fp8 or null")
    segmenter: Name = Field(
        "auto",
        description="cuts out a clicked object: sam:FILE, a hub id or folder of SAM, offline, "
        "grabcut; auto: offline where the weights of U2-Net-p are found, else grabcut",
    )
    max_upload_mb: Positive = Field(32, description="largest file that is accepted")
    max_pixels: Count = Field(24_000_000, description="largest image that is accepted")
    max_objects: int = Field(4, ge=1, le=8, description="most objects of one edit")
    max_steps: Count = Field(200, description="most sampling steps of one edit")
    max_compared: Count = Field(12, description="most edits of one comparison")
    max_waiting: Count = Field(32, description="most jobs that wait for the device")
    history: Count = Field(24, description="edits that a session can return to")
    keep_hours: Positive = Field(24, description="hours after which uploads and edits are deleted")


def read_users(settings: StudioSettings) -> list[tuple[str, str]]:
    """Users and passwords: from the file of the setting, else from the environment; may be empty.

    Raises:
        UserError: the file is missing or a line has another form.
    """
    if settings.auth is not None:
        if ":" in settings.auth and not Path(settings.auth).exists():
            raise UserError(
                "--auth: a password on the command line can be read by every user of this machine; "
                f"put user:password into a file and name that, or set {AUTH_VARIABLE}"
            )
        check_input_file(settings.auth, "list of users")
        text, source = Path(settings.auth).read_text(encoding="utf-8"), settings.auth
    else:
        text, source = os.environ.get(AUTH_VARIABLE, ""), AUTH_VARIABLE
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    users = [tuple(line.partition(":")[::2]) for line in lines]
    if not all(name and password for name, password in users):
        raise UserError(f"{source}: every line must be user:password")
    if settings.auth is not None and not users:
        raise UserError(f"{source}: it names no user, write a line user:password")
    return [(name, password) for name, password in users]


def is_private(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")

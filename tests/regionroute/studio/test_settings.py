"""Settings of the studio: users from a file or the environment, warnings, the command's options."""

from __future__ import annotations

from pathlib import Path

import pytest

from regionroute.cli.studio.serve import main, overrides, parser
from regionroute.config.io import load_config
from regionroute.errors import UserError
from regionroute.studio.server import warnings_of
from regionroute.studio.settings import AUTH_VARIABLE, StudioSettings, read_users


def settings(*arguments: str) -> StudioSettings:
    return load_config(None, overrides(parser().parse_args(arguments)), StudioSettings)


def test_only_this_machine_is_served_unless_asked_for() -> None:
    made = settings()
    assert (made.host, made.share, made.mcp) == ("127.0.0.1", False, False)
    assert warnings_of(made) == []
    assert len(warnings_of(settings("--host", "0.0.0.0"))) == 1
    assert len(warnings_of(settings("--share"))) == 1


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    file.write_text("port: 8000\nkeep_hours: 2\nexperts: {a: runs/a}\n")
    given = overrides(parser().parse_args(["--port", "9000", "--data", "d", "--data", "e"]))
    made = load_config(file, given, StudioSettings)
    assert (made.port, made.keep_hours, made.data) == (9000, 2, ["d", "e"])
    assert made.experts == {"a": "runs/a"}
    assert settings("--experts", "b=runs/b").experts == {"b": "runs/b"}


def test_users_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users"
    file.write_text("# team\nada:pass:word\n\nben:b\n")
    assert read_users(settings("--auth", str(file))) == [("ada", "pass:word"), ("ben", "b")]
    assert read_users(settings()) == []
    monkeypatch.setenv(AUTH_VARIABLE, "eve:e")
    assert read_users(settings()) == [("eve", "e")]
    assert warnings_of(settings("--host", "0.0.0.0")) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [("ada\n", "must be user:password"), (":x\n", "must be user:password"), ("", "no user")],
)
def test_a_list_without_users_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "users"
    file.write_text(content)
    with pytest.raises(UserError, match=problem):
        read_users(settings("--auth", str(file)))


def test_a_password_on_the_command_line_is_refused() -> None:
    with pytest.raises(UserError, match="put user:password into a file"):
        read_users(settings("--auth", "ada:secret"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "70000"], "port"),
        (["--max-pixels", "0"], "max_pixels"),
        (["--experts", "folder"], "NAME=DIR"),
        (["--config", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--print-config"]) == 2
    assert problem in capsys.readouterr().err


def test_all_settings_are_printed_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-config", "--port", "81"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file, [], StudioSettings) == settings("--port", "81")

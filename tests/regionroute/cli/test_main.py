"""What all commands share: help that teaches, quick completion, options with one meaning."""

import argparse
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from regionroute.cli import options
from regionroute.cli.main import COMMANDS, completion_parser, main
from regionroute.errors import UserError


def parsers(name):
    """The parser of a command and those of its actions."""
    parser = COMMANDS[name].parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def complete(line):
    """What the shell would be offered after this line, and whether torch was imported."""
    code = (
        "import sys, os\n"
        "from regionroute.cli.main import main\n"
        "leave = os._exit\n"
        "os._exit = lambda code: leave(77 if 'torch' in sys.modules else code)\n"
        "main()"
    )
    read, write = os.pipe()
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    with subprocess.Popen(
        ["bash", "-c", f'"$0" -c "$1" 8>&{write}', sys.executable, code],
        env=environment,
        pass_fds=[write],
    ) as process:
        os.close(write)
        with os.fdopen(read) as answers:
            found = [line.strip() for line in answers.read().split("\n")]
    assert process.returncode != 77, "torch was imported"
    return found


def test_the_shell_completes_commands_options_and_choices():
    assert complete("regionroute dem") == ["demo"]
    assert set(complete("regionroute label --st")) == {"--styles", "--styles-per-photo"}
    assert complete("regionroute score --met") == ["--metrics"]
    assert complete("regionroute train --print") == ["--print-config"]
    assert complete("regionroute experts exp") == ["export"]
    formats = {"diffusers", "peft", "comfyui"}
    assert set(complete("regionroute experts export --format ")) == formats
    assert "--strike" not in complete("regionroute label --s")  # an old name, still read


@pytest.fixture(scope="module")
def helps():
    """The help of every command, printed by one process that has not imported torch after any."""
    code = (
        "import contextlib, io, json, sys\n"
        "from regionroute.cli.main import main\n"
        "shown = {}\n"
        f"for name in {[*COMMANDS]!r}:\n"
        "    printed = io.StringIO()\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):\n"
        "        main([name, '--help'])\n"
        "    shown[name] = printed.getvalue(), 'torch' in sys.modules\n"
        "print(json.dumps(shown))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_verb_and_an_example_and_needs_no_torch(name, helps):
    shown, torch_is_there = helps[name]
    assert not torch_is_there
    assert f"regionroute {name} " in shown
    assert re.search(rf"^  regionroute {name}\b", shown, re.MULTILINE), "no example"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_with_its_default(name):
    unexplained = []
    for parser in parsers(name):
        for action in parser._actions:
            hidden = action.help is argparse.SUPPRESS
            if hidden or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
                continue
            default = action.default
            stated = re.findall(r"\(([^()]*)\)", action.help or "")
            plain = isinstance(default, str | int | float) and not isinstance(default, bool)
            value = f"{default:g}" if isinstance(default, float) else str(default)
            if not action.help or (plain and action.option_strings and value not in stated):
                unexplained.append((parser.prog, action.option_strings or action.dest))
    assert unexplained == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_accepted_by_its_parser(name):
    """Each line of an epilog that starts with this command parses; files are not opened."""
    parser = COMMANDS[name].parser()
    text = (parser.epilog or "").replace("\\\n", " ")
    lines = re.findall(rf"^  regionroute {name}\b *(.*)$", text, re.MULTILINE)
    for line in lines:
        words = shlex.split(line, comments=True)
        if "..." in words:
            continue
        actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if actions:
            parser_of = actions[0].choices[words[0]]
            parser_of.parse_intermixed_args(words[1:])
        else:
            parser.parse_intermixed_args(words)


def test_defaults_that_help_states_are_those_of_the_library():
    """`label` passes on only what was given, so its help must not promise other defaults."""
    from pseudo_labels.curate.filters import Limits
    from pseudo_labels.job import BuildSettings
    from pseudo_labels.label import label
    from pseudo_labels.segment.loading import DEFAULT_GROUNDER, FinderSettings
    from pseudo_labels.stylegallery.config import PRESETS
    from pseudo_labels.stylegallery.networks import DINO
    from pseudo_labels.stylegallery.stylizer import GallerySettings
    from pseudo_labels.stylemamba.networks import Names
    from regionroute.cli import gallery
    from regionroute.cli import label as command
    from regionroute.cli.mamba import fit

    def stated(parser, option):
        [action] = [a for a in parser._actions if f"--{option}" in a.option_strings]
        return re.search(r"\(([^()]*)\)$", action.help)[1]

    parser = command.parser()
    for name, value in vars(Limits()).items():
        assert stated(parser, name.replace("_", "-")) == f"{value:g}"
    settings, find = BuildSettings(), FinderSettings()
    for name in ("size", "feather", "multi"):
        assert stated(parser, name) == str(getattr(settings, name))
    for name in ("segmenter", "threshold", "instances"):
        assert stated(parser, name) == str(getattr(find, name))
    assert stated(parser, "grounder").endswith(f": {DEFAULT_GROUNDER}")
    share = inspect.signature(label).parameters["test_share"].default
    assert stated(parser, "test-share") == f"{share:g}"
    assert Names() == Names(fit.ENCODER, fit.VAE)
    for name in ("model", "cache"):
        assert stated(gallery.parser(), name) == GallerySettings.model_fields[name].default
    assert stated(gallery.parser(), "dino") == DINO
    assert tuple(PRESETS) == gallery.PRESETS


def test_old_names_are_read_and_name_the_new_one(capsys):
    parser = importlib.import_module("regionroute.cli.label").parser()
    args = parser.parse_args(["--out", "o", "--strike", "list.txt", "--split-val=0.5"])
    assert (args.exclude, args.test_share) == ("list.txt", 0.5)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: --strike is now called --exclude",
        "note: --split-val is now called --test-share",
    ]
    assert parser.parse_args(["--out", "o"]).exclude is None
    assert capsys.readouterr().err == ""


def test_shared_checks_name_the_option():
    args = argparse.Namespace(batch_size=0, workers=10_000, seed=None)
    with pytest.raises(UserError, match="--batch-size 0: must be at least 1"):
        options.check_least(args, {"batch_size": 1})
    options.check_least(args, {"seed": 0})  # not given
    with pytest.raises(UserError, match="--workers 10000: must be at most 256"):
        options.check_workers(args)
    assert options.given(args, "batch_size", "seed") == {"batch_size": 0}
    assert options.comma_list(" dog, red  cat ,dog,") == ["dog", "red cat"]


def test_commands_and_their_parsers_go_together(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "register-python-argcomplete" in text
    for entry in COMMANDS.values():
        assert entry.summary[0].islower()
    known = completion_parser("")._subparsers._group_actions[0].choices
    assert list(known) == list(COMMANDS)


@pytest.mark.parametrize("argument", ["s3://photos/cats", "--edits=gs://out/edits"])
@pytest.mark.parametrize("name", ["check", "manifest", "report"])
def test_object_stores_are_refused_in_a_sentence(name, argument, refused):
    url = argument.removeprefix("--edits=")
    assert refused(main, [name, argument]).startswith(f"error: {url}: this command reads and")

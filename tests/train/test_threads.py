"""Training next to another busy program: idle threads must sleep."""

import subprocess
import sys

import pytest

SCRIPTS = (
    "train.run",
    "train.pretrain.run",
    "train.pretrain.train_image_encoder",
    "train.pretrain.train_word_attention",
    "train.style_encoder.run",
)
PROGRAM = """
import importlib, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            os._exit(0)
sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import torch
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_waiting_policy_is_set_before_torch_is_imported(script, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    done = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM, script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "passive"

import pytest
import torch

from regionroute.errors import UserError
from train.engine.states import load_states, save_states


def trained(seed):
    torch.manual_seed(seed)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_a_checkpoint_brings_every_part_back(tmp_path):
    (network, optimizer), (other, others_optimizer) = trained(0), trained(1)
    path = tmp_path / "checkpoint.pt"
    save_states(path, 7, network=network, optimizer=optimizer)

    assert load_states(path, network=other, optimizer=others_optimizer) == 7
    assert torch.equal(other.weight, network.weight)
    moments = [o.state_dict()["state"][0]["exp_avg"] for o in (optimizer, others_optimizer)]
    assert torch.equal(*moments)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_without_a_checkpoint_nothing_is_done(tmp_path):
    assert load_states(tmp_path / "checkpoint.pt", network=torch.nn.Linear(1, 1)) == 0


@pytest.mark.parametrize("spoil", ["half", "other sizes", "other parts"])
def test_a_wrong_checkpoint_is_told_of(tmp_path, spoil):
    path = tmp_path / "checkpoint.pt"
    network, optimizer = trained(0)
    save_states(path, 7, network=network, optimizer=optimizer)
    parts = {"network": network, "optimizer": optimizer}
    if spoil == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif spoil == "other sizes":
        parts["network"] = torch.nn.Linear(3, 5)
    else:
        parts["average"] = network

    with pytest.raises(UserError, match=r"checkpoint.pt: this checkpoint is damaged or of other"):
        load_states(path, **parts)


@pytest.mark.parametrize("ruined", [float("nan"), float("inf")])
def test_ruined_weights_do_not_replace_the_checkpoint(tmp_path, ruined):
    network, optimizer = trained(1)
    path = tmp_path / "checkpoint.pt"
    save_states(path, 7, network=network, optimizer=optimizer)
    with torch.no_grad():
        network.bias[0] = ruined
    with pytest.raises(UserError, match="step 8 are not finite"):
        save_states(path, 8, network=network, optimizer=optimizer)
    assert load_states(path, network=network, optimizer=optimizer) == 7

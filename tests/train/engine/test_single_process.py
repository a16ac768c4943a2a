import pytest
import torch

from regionroute.errors import UserError
from train.engine.single_process import check_finite


@pytest.mark.parametrize("ruined", [float("nan"), float("inf")])
def test_weights_that_a_training_ruined_are_refused(ruined):
    network = torch.nn.Linear(3, 2)
    check_finite(network)
    with torch.no_grad():
        network.bias[1] = ruined
    with pytest.raises(UserError, match="lower lr"):
        check_finite(network)

"""A vocabulary divided over workers gives what a whole one does; see also `test_certifying.py`."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from eagleray.actors.training.group import run_group
from eagleray.actors.training.team import Team, tell
from eagleray.actors.training.tensor import Layout, divide_over, split_model
from eagleray.actors.training.vocabulary import ParallelEmbedding, ParallelVocabulary
from eagleray.models.heads.vocabulary import Vocabulary
from eagleray.models.losses import IGNORED


def pair(tokens: int) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(tokens, 6), "head": Vocabulary(6, tokens)}).double()


def found(model: nn.ModuleDict, add=lambda x: x) -> list[torch.Tensor]:
    """Losses of some tokens, then the gradients of all parameters."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 12, (3, 5))
    targets = torch.randint(0, 12, (3, 5)).masked_fill(torch.rand(3, 5) < 0.3, IGNORED)
    nll = model["head"].nll(add(model["embed"](tokens)), targets)
    (nll * torch.randn(3, 5).double()).sum().backward()
    return [nll.detach(), *(p.grad for p in model.parameters())]


def divided(rank: int, workers: int, tokens: int):
    model = pair(tokens)
    mesh = init_device_mesh("cpu", (workers,))
    team = Team(mesh.get_group())
    split_model(model, Layout(team, divide_over(mesh)), {})
    add = (lambda x: tell(x, team.sum, lambda same: same)) if tokens % workers == 0 else (lambda x: x)
    kinds = [type(layer) for layer in model.children()]
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found(model, add)]
    return kinds, [g.numpy() for g in whole]


@pytest.mark.parametrize(("workers", "tokens"), [(2, 12), (3, 12), (2, 13)])
def test_losses_and_gradients_are_those_of_a_whole_one(workers, tokens):
    expected = found(pair(tokens))
    for kinds, mine in run_group(divided, workers, workers, tokens):
        # one that the workers don't divide stays whole
        assert kinds == [[nn.Embedding, Vocabulary], [ParallelEmbedding, ParallelVocabulary]][tokens == 12]
        for one, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-13, atol=1e-13)

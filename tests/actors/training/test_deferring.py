"""A linear layer's weights get the gradient of autograd, when they are asked for it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from eagleray.actors.training.deferring import defer


def gradients_of(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_weights_get_their_gradient_later_and_inputs_at_once(again):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3, bias=False)).double()
    first, second = (torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def passes():
        for x in (first, second):
            found = checkpoint(model, x, use_reentrant=False) if again else model(x)
            found.square().sum().backward()
        return [x.grad for x in (first, second)]

    of_inputs = [gradient.clone() for gradient in passes()]
    expected = gradients_of(model)
    for tensor in (first, second, *model.parameters()):
        tensor.grad = None

    deferred = defer(model)
    with deferred.collecting(True):
        torch.testing.assert_close(passes(), of_inputs, rtol=1e-14, atol=1e-14)
    assert [gradient is None for gradient in gradients_of(model)] == [True, True, False, False, True]
    assert first.requires_grad  # so that a gradient could have a history, which would keep activations
    for _ in range(2):  # what was taken is not done again
        deferred.take()()
        torch.testing.assert_close(gradients_of(model), expected, rtol=1e-14, atol=1e-14)
    assert not any(p.grad.requires_grad for p in model.parameters())


def test_outside_of_it_nothing_is_put_off_and_what_is_frozen_gets_nothing():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    model(x).sum().backward()
    expected = gradients_of(model)
    model.zero_grad()
    deferred = defer(model)
    model(x).sum().backward()
    torch.testing.assert_close(gradients_of(model), expected)
    model.requires_grad_(False)
    x.requires_grad_()
    model.zero_grad()
    with deferred.collecting(True):
        model(x).sum().backward()
    deferred.take()()
    assert gradients_of(model) == [None, None]

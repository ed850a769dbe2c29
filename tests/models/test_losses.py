import torch
from torch.nn import functional as F

from eagleray.models.losses import classification_nll, next_token_nll


def test_next_token_loss_is_cross_entropy_of_the_next_token():
    logits, tokens = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    mask = torch.arange(6)[None] < torch.tensor([[6], [4], [0]])
    nll = next_token_nll(logits, tokens, mask)
    for row, length in enumerate((6, 4, 0)):
        expected = sum((F.cross_entropy(logits[row, t], tokens[row, t + 1]) for t in range(length - 1)), 0.0)
        torch.testing.assert_close(nll[row], torch.as_tensor(expected))


def test_padding_gets_no_gradient():
    logits, tokens = torch.randn(2, 5, 7, requires_grad=True), torch.zeros(2, 5, dtype=torch.long)
    mask = torch.arange(5)[None] < torch.tensor([[3], [0]])
    (gradient,) = torch.autograd.grad(next_token_nll(logits, tokens, mask).sum(), logits)
    assert gradient.any(-1).tolist() == [[True, True, False, False, False], [False] * 5]


def test_a_record_without_a_category_counts_as_nothing():
    logits = torch.randn(3, 4)
    nll = classification_nll(logits, torch.tensor([2, -1, 0]))
    assert nll[1] == 0
    torch.testing.assert_close(nll[0], -logits[0].log_softmax(-1)[2])

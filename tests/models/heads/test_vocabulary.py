import torch
from torch.nn import functional as F

from eagleray.models.heads.vocabulary import Vocabulary


def test_next_token_loss_is_cross_entropy_of_the_next_token():
    head, hidden, tokens = Vocabulary(8, 11), torch.randn(3, 6, 8), torch.randint(0, 11, (3, 6))
    logits = head(hidden)
    mask = torch.arange(6)[None] < torch.tensor([[6], [4], [0]])
    nll = head.next_token_nll(hidden, tokens, mask)
    for row, length in enumerate((6, 4, 0)):
        expected = sum((F.cross_entropy(logits[row, t], tokens[row, t + 1]) for t in range(length - 1)), 0.0)
        torch.testing.assert_close(nll[row], torch.as_tensor(expected))


def test_padding_gets_no_gradient():
    head, hidden = Vocabulary(8, 7), torch.randn(2, 5, 8, requires_grad=True)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.arange(5)[None] < torch.tensor([[3], [0]])
    (gradient,) = torch.autograd.grad(head.next_token_nll(hidden, tokens, mask).sum(), hidden)
    assert gradient.any(-1).tolist() == [[True, True, False, False, False], [False] * 5]

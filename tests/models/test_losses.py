import torch
from torch.nn import functional as F

from eagleray.models.losses import caption_loss


def test_caption_loss_is_cross_entropy_of_the_next_token():
    logits, tokens = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    mask = torch.arange(6)[None] < torch.tensor([[6], [4], [0]])
    nll, num_tokens = caption_loss(logits, tokens, mask)
    rows = [(0, t) for t in range(5)] + [(1, t) for t in range(3)]
    expected = sum(F.cross_entropy(logits[b, t], tokens[b, t + 1]) for b, t in rows)
    torch.testing.assert_close(nll, expected)
    assert num_tokens == len(rows)


def test_padding_of_a_caption_gets_no_gradient():
    logits, tokens = torch.randn(2, 5, 7, requires_grad=True), torch.zeros(2, 5, dtype=torch.long)
    mask = torch.arange(5)[None] < torch.tensor([[3], [0]])
    (gradient,) = torch.autograd.grad(caption_loss(logits, tokens, mask)[0], logits)
    assert gradient.any(-1).tolist() == [[True, True, False, False, False], [False] * 5]

import math

import torch

from eagleray.models.heads.embedding import EmbeddingHead


def test_embeddings_have_unit_length():
    head = EmbeddingHead(6, 4)
    embedding = head(torch.randn(5, 7, 6), torch.rand(5, 7) < 0.7)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(5))


def test_masked_positions_are_never_read():
    head, mask = EmbeddingHead(6, 4).double(), torch.tensor([[True, True, False]])
    hidden = torch.randn(1, 3, 6, dtype=torch.double)
    expected = head(hidden[:, :2], mask[:, :2])
    hidden[:, 2] = math.nan
    hidden.requires_grad_()
    embedding = head(hidden, mask)
    torch.testing.assert_close(embedding, expected)
    (gradient,) = torch.autograd.grad(embedding[0, 0], hidden)
    assert not gradient[0, 2].any()
    assert gradient.isfinite().all()


def test_a_row_without_positions_is_finite_in_both_directions():
    head = EmbeddingHead(6, 4)
    embedding = head(torch.full((2, 3, 6), math.nan), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(embedding[0], embedding[1])
    assert embedding.isfinite().all()
    embedding.sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_order_of_positions_does_not_matter():
    head, hidden = EmbeddingHead(6, 4).double(), torch.randn(2, 5, 6, dtype=torch.double)
    mask = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(head(hidden.flip(1), mask), head(hidden, mask))

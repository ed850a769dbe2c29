import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eagleray.models.losses import caption_loss, contrastive_loss, info_nce

N = 5
SCALE = torch.tensor(7.0, dtype=torch.double)


def unit(seed, n=N):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 4, dtype=torch.double, generator=generator), dim=-1)


def by_hand(a, b, valid, groups):
    """Mean over valid rows of -log p(own partner | own partner and the valid rows of other groups)."""
    total = 0.0
    rows = [i for i in range(len(a)) if valid[i]]
    for queries, keys in ((a, b), (b, a)):
        for i in rows:
            rivals = [j for j in rows if j == i or groups[j] != groups[i]]
            powers = {j: math.exp(7.0 * float(queries[i] @ keys[j])) for j in rivals}
            total -= math.log(powers[i] / sum(powers.values())) / 2
    return total / max(1, len(rows))


@given(
    valid=st.lists(st.booleans(), min_size=N, max_size=N),
    groups=st.lists(st.integers(0, 3), min_size=N, max_size=N),
    seed=st.integers(0, 1000),
)
def test_info_nce_is_the_formula(valid, groups, seed):
    a, b, group = unit(seed), unit(seed + 1), torch.tensor(groups)
    loss = info_nce(a, b, SCALE, torch.tensor(valid), group[:, None] == group[None, :])
    assert loss.item() == pytest.approx(by_hand(a, b, valid, groups), abs=1e-10)


def test_info_nce_of_all_rows_is_cross_entropy_both_ways():
    a, b = unit(0), unit(1)
    logits, own = 7 * a @ b.T, torch.arange(N)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(info_nce(a, b, SCALE, torch.ones(N, dtype=torch.bool)), expected)


def test_info_nce_is_symmetric():
    a, b, valid = unit(0), unit(1), torch.tensor([True, False, True, True, True])
    same = torch.tensor([0, 1, 0, 2, 3])[:, None] == torch.tensor([0, 1, 0, 2, 3])
    torch.testing.assert_close(info_nce(a, b, SCALE, valid, same), info_nce(b, a, SCALE, valid, same))


@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
def test_invalid_rows_are_never_read_and_get_no_gradient(fill):
    valid = torch.tensor([True, False, True, True, False])
    a, b = unit(0), unit(1)
    expected = info_nce(a[valid], b[valid], SCALE, torch.ones(3, dtype=torch.bool))
    a[~valid] = fill
    a.requires_grad_()
    b.requires_grad_()
    loss = info_nce(a, b, SCALE, valid)
    torch.testing.assert_close(loss, expected)
    for gradient in torch.autograd.grad(loss, (a, b)):
        assert not gradient[~valid].any()
        assert gradient[valid].any(-1).all()


def test_a_shared_caption_is_no_negative():
    a, b = unit(0).requires_grad_(), unit(1)
    groups = torch.tensor([0, 0, 1, 2, 3])
    same = groups[:, None] == groups[None, :]
    moved = b.clone()
    moved[1] = unit(9)[0]  # shares row 0's caption: where it lies is nothing to row 0
    everything = torch.ones(N, dtype=torch.bool)
    (before,) = torch.autograd.grad(info_nce(a, b, SCALE, everything, same), a)
    (after,) = torch.autograd.grad(info_nce(a, moved, SCALE, everything, same), a)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[2], after[2])


def test_no_valid_row_is_no_loss_and_no_gradient():
    a = unit(0).requires_grad_()
    loss = info_nce(a, unit(1), SCALE, torch.zeros(N, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, a)
    assert loss == 0
    assert not gradient.any()


def test_contrastive_loss_is_the_mean_over_pairs_that_exist():
    embeddings = {"image": unit(0), "text": unit(1), "speech": unit(2)}
    present = torch.tensor(
        [[True, True, True], [True, True, False], [False, True, True], [True, False, True]]
    )
    embeddings = {m: e[:4] for m, e in embeddings.items()}
    pairs = [("image", "text", [0, 1]), ("image", "speech", [0, 3]), ("text", "speech", [0, 2])]

    def expected(chosen):
        losses = [
            info_nce(embeddings[a][rows], embeddings[b][rows], SCALE, torch.ones(2, dtype=torch.bool))
            for a, b, rows in chosen
        ]
        return sum(losses) / len(losses)

    torch.testing.assert_close(contrastive_loss(embeddings, present, SCALE), expected(pairs))
    present[:, 2] = False
    torch.testing.assert_close(contrastive_loss(embeddings, present, SCALE), expected(pairs[:1]))
    present[:, 1] = False
    assert contrastive_loss(embeddings, present, SCALE) == 0


def test_contrastive_loss_passes_groups_on():
    embeddings, present = {"image": unit(0), "text": unit(1)}, torch.ones(N, 3, dtype=torch.bool)
    groups = torch.tensor([4, 4, 4, 4, 4])
    assert contrastive_loss(embeddings, present, SCALE, groups).item() == pytest.approx(0, abs=1e-12)


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

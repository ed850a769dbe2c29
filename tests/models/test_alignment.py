import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eagleray.models.alignment import CrossModalAttention, Past, contrastive_loss, info_nce

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


def filled(num_rows, groups, present=None):
    past = Past.empty(len(groups), {"image": 4, "text": 4}, torch.device("cpu"))
    present = torch.ones(num_rows, 3, dtype=torch.bool) if present is None else present
    return past.followed_by(
        {"image": unit(20, num_rows), "text": unit(21, num_rows)}, present, torch.tensor(groups[:num_rows])
    )


def test_past_rows_are_negatives_and_nothing_else():
    # one batch whose later rows are of the past: their own losses and gradients fall away
    embeddings, groups = {"image": unit(0), "text": unit(1)}, torch.tensor([0, 1, 2, 3, 1])
    past = filled(3, [7, 1, 9])
    loss = contrastive_loss(embeddings, torch.ones(N, 3, dtype=torch.bool), SCALE, groups, past)
    expected = 0.0
    for queries, keys, more in (("image", "text", "text"), ("text", "image", "image")):
        for i in range(N):
            rivals = [
                keys_row for j, keys_row in enumerate(embeddings[keys]) if j == i or groups[j] != groups[i]
            ]
            rivals += [
                row
                for row, group in zip(past.embeddings[more], past.groups, strict=True)
                if group != groups[i]
            ]
            powers = torch.stack([(7 * embeddings[queries][i] @ row.double()).exp() for row in rivals])
            own = (7 * embeddings[queries][i] @ embeddings[keys][i]).exp()
            expected -= (own / powers.sum()).log() / (2 * N)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)  # the past is kept in single precision


def test_an_empty_past_changes_nothing():
    embeddings, present = {"image": unit(0), "text": unit(1)}, torch.ones(N, 3, dtype=torch.bool)
    groups = torch.arange(N)
    empty = Past.empty(8, {"image": 4, "text": 4}, torch.device("cpu"))
    assert torch.equal(
        contrastive_loss(embeddings, present, SCALE, groups, empty),
        contrastive_loss(embeddings, present, SCALE, groups),
    )
    none = Past.empty(0, {"image": 4, "text": 4}, torch.device("cpu"))
    assert none.followed_by(embeddings, present, groups) is none


def test_the_past_keeps_the_last_rows_in_order():
    past = filled(3, [1, 2, 3, 0, 0])
    assert past.groups.tolist() == [-1, -1, 1, 2, 3]
    past = past.followed_by(
        {"image": unit(5), "text": unit(6)}, torch.ones(N, 3, dtype=torch.bool), torch.arange(4, 9)
    )
    assert past.groups.tolist() == [4, 5, 6, 7, 8]
    torch.testing.assert_close(past.embeddings["text"], unit(6).float())


def test_a_past_row_without_a_modality_is_no_negative_in_it():
    embeddings, everything = {"image": unit(0), "text": unit(1)}, torch.ones(N, 3, dtype=torch.bool)
    groups = torch.arange(N)
    without = filled(2, [7, 8], torch.tensor([[True, False, False], [True, False, False]]))
    moved = Past({**without.embeddings, "text": unit(30, 2).float()}, without.present, without.groups)
    assert torch.equal(
        contrastive_loss(embeddings, everything, SCALE, groups, without),
        contrastive_loss(embeddings, everything, SCALE, groups, moved),
    )


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return CrossModalAttention(8, 6, 2).double()


def views(batch=2, queries=3, positions=4):
    torch.manual_seed(1)
    x, other = torch.randn(batch, queries, 8).double(), torch.randn(batch, positions, 6).double()
    return x, torch.ones(x.shape[:2], dtype=torch.bool), other, torch.ones(other.shape[:2], dtype=torch.bool)


def test_divergence_is_the_formula_and_output_is_attention(attention):
    x, mask, other, other_mask = views()
    mask[0, 2] = other_mask[1, 3] = False
    scores = torch.randn(2, 4).double()
    output, kl = attention(x, mask, other, other_mask, scores)
    for b in range(2):
        kept = other_mask[b]
        own = scores[b, kept].softmax(0)
        total, mixed = 0.0, torch.zeros(3, 8).double()
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            query, key = attention.to_query(x[b])[:, part], attention.to_key(other[b, kept])[:, part]
            view = (query @ key.T / 2).softmax(-1)
            mixed[:, part] = view @ attention.to_value(other[b, kept])[:, part]
            total += (view * (view / own).log()).sum(-1)[mask[b]].sum()
        torch.testing.assert_close(kl[b], total / 2 / mask[b].sum())
        torch.testing.assert_close(output[b], attention.to_output(mixed))


def test_divergence_is_zero_where_both_agree_and_draws_only_the_one_that_asks(attention):
    x, mask, other, other_mask = views()
    torch.nn.init.zeros_(attention.to_query.weight)  # every position looks everywhere alike
    torch.nn.init.zeros_(attention.to_query.bias)
    scores = torch.zeros(2, 4).double().requires_grad_()
    _, kl = attention(x, mask, other, other_mask, scores)
    torch.testing.assert_close(kl, torch.zeros(2).double())
    _, kl = attention(x, mask, other, other_mask, scores + torch.tensor([1.0, 0, 0, 0]))
    assert (kl > 0.01).all()
    kl.sum().backward()
    assert scores.grad is None
    assert attention.to_query.bias.grad.any()


@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
def test_masked_positions_of_either_change_nothing(attention, fill):
    x, mask, other, other_mask = views()
    other_mask[0, 1:] = other_mask[1] = False  # the second row has nothing of the other modality
    mask[0, 1] = False
    scores = torch.randn(2, 4).double()
    output, kl = attention(x, mask, other, other_mask, scores)
    other = other.masked_fill(~other_mask[..., None], fill)
    again, same = attention(x, mask, other, other_mask, scores)
    assert torch.equal(output, again)
    assert torch.equal(kl, same)
    assert kl[1] == 0
    (output.sum() + kl.sum()).backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())

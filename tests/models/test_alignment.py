import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from eagleray.models.alignment import CrossModalAttention, Rows, contrastive_loss, info_nce
from eagleray.models.spec import MODALITIES

N = 5
SCALE = torch.tensor(7.0, dtype=torch.double)
ALL = torch.ones(N, dtype=torch.bool)
OTHERS = ~torch.eye(N, dtype=torch.bool)
OWN = torch.arange(N)


def unit(seed, n=N):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 4, dtype=torch.double, generator=generator), dim=-1)


def rows_of(seed=0, groups=range(N), present=None, modalities=("image", "text")) -> Rows:
    groups = torch.tensor(list(groups))
    present = torch.ones(len(groups), 3, dtype=torch.bool) if present is None else torch.tensor(present)
    return Rows({m: unit(seed + i, len(groups)) for i, m in enumerate(modalities)}, present, groups)


def by_hand(queries: Rows, own, keys: Rows, num_rows: int) -> float:
    """Mean over pairs of modalities, ways and rows of -log p(own key | it and all of other groups)."""
    per_pair = []
    names = [m for m in MODALITIES if m in queries.embeddings]
    for first, second in [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]:
        i, j = MODALITIES.index(first), MODALITIES.index(second)
        count = sum(bool(row[i] and row[j]) for row in keys.present[:num_rows])
        total = 0.0
        for ours, theirs, place in ((first, second, j), (second, first, i)):
            for row, (place_of_own, group) in enumerate(zip(own, queries.groups, strict=True)):
                if not (queries.present[row, i] and queries.present[row, j]):
                    continue
                powers = {
                    k: math.exp(7.0 * float(queries.embeddings[ours][row] @ keys.embeddings[theirs][k]))
                    for k in range(len(keys.groups))
                    if k == place_of_own or (keys.present[k, place] and keys.groups[k] != group)
                }
                total -= math.log(powers[int(place_of_own)] / sum(powers.values()))
        if count:
            per_pair.append(total / 2 / count)
    return sum(per_pair) / max(1, len(per_pair))


masks = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=N, max_size=N)
groupings = st.lists(st.integers(0, 3), min_size=N, max_size=N)


@given(present=masks, groups=groupings, past=masks, past_groups=groupings, seed=st.integers(0, 1000))
def test_contrastive_loss_is_the_formula(present, groups, past, past_groups, seed):
    every = ("image", "text", "speech")
    batch, earlier = rows_of(seed, groups, present, every), rows_of(seed + 9, past_groups, past, every)
    alone = contrastive_loss(batch, batch, SCALE)
    assert alone.item() == pytest.approx(by_hand(batch, OWN, batch, N), abs=1e-10)
    queries = Rows({m: unit(seed + 5 + i) for i, m in enumerate(every)}, batch.present, batch.groups)
    loss = contrastive_loss(queries, batch, SCALE, past=earlier)
    keys = batch.followed_by(earlier)
    assert loss.item() == pytest.approx(by_hand(queries, OWN, keys, N), abs=1e-10)


def test_parts_of_a_batch_add_up_to_the_whole():
    present = [[True, True, True], [True, True, False], [False, True, True], [True, False, True], [True] * 3]
    batch = rows_of(0, [0, 1, 2, 1, 3], present, ("image", "text", "speech"))
    past = rows_of(20, [7, 1, 9], modalities=("image", "text", "speech"))
    parts = [
        contrastive_loss(
            Rows({m: e[own] for m, e in batch.embeddings.items()}, batch.present[own], batch.groups[own]),
            batch,
            SCALE,
            own,
            past,
        )
        for own in OWN.split(2)
    ]
    torch.testing.assert_close(sum(parts), contrastive_loss(batch, batch, SCALE, past=past))


def test_info_nce_of_all_rows_is_cross_entropy():
    a, b = unit(0), unit(1)
    expected = F.cross_entropy(7 * a @ b.T, OWN, reduction="none")
    torch.testing.assert_close(info_nce(a, b, OWN, SCALE, ALL, OTHERS), expected)


@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
def test_invalid_rows_are_never_read_and_get_no_gradient(fill):
    valid = torch.tensor([True, False, True, True, False])
    a, b = unit(0), unit(1)
    kept = torch.arange(3)
    expected = info_nce(a[valid], b[valid], kept, SCALE, ALL[:3], OTHERS[:3, :3])
    a[~valid] = b[~valid] = fill
    a.requires_grad_()
    b.requires_grad_()
    loss = info_nce(a, b, OWN, SCALE, valid, OTHERS & valid)
    torch.testing.assert_close(loss[valid], expected)
    assert not loss[~valid].any()
    for gradient in torch.autograd.grad(loss.sum(), (a, b)):
        assert not gradient[~valid].any()
        assert gradient[valid].any(-1).all()


def test_a_shared_caption_is_no_negative():
    batch = rows_of(groups=[0, 0, 1, 2, 3])
    moved = batch.embeddings["text"].clone()
    moved[1] = unit(9)[0]  # shares row 0's caption: where it lies is nothing to row 0
    image = batch.embeddings["image"].requires_grad_()
    (before,) = torch.autograd.grad(contrastive_loss(batch, batch, SCALE), image)
    other = Rows({"image": image, "text": moved}, batch.present, batch.groups)
    (after,) = torch.autograd.grad(contrastive_loss(other, other, SCALE), image)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[2], after[2])


def test_no_row_with_both_is_no_loss_and_no_gradient():
    batch = rows_of(present=[[True, False, False]] * N)
    image = batch.embeddings["image"].requires_grad_()
    loss = contrastive_loss(batch, batch, SCALE)
    (gradient,) = torch.autograd.grad(loss, image)
    assert loss == 0
    assert not gradient.any()


def test_an_empty_past_changes_nothing():
    batch = rows_of()
    empty = Rows.empty(8, {"image": 4, "text": 4}, torch.device("cpu"))
    torch.testing.assert_close(
        contrastive_loss(batch, batch, SCALE, past=empty), contrastive_loss(batch, batch, SCALE)
    )


def test_the_past_keeps_the_last_rows_in_order():
    past = Rows.empty(5, {"image": 4, "text": 4}, torch.device("cpu"))
    past = past.followed_by(rows_of(0, [1, 2, 3], modalities=("image", "text", "speech"))).last(5)
    assert past.groups.tolist() == [-1, -1, 1, 2, 3]
    assert past.present.any(dim=1).tolist() == [False, False, True, True, True]
    past = past.followed_by(rows_of(5, range(4, 9))).last(5)
    assert past.groups.tolist() == [4, 5, 6, 7, 8]
    assert set(past.embeddings) == {"image", "text"}
    torch.testing.assert_close(past.embeddings["text"], unit(6).float())
    assert past.last(0).groups.tolist() == []


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

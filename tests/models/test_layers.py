import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eagleray.models.layers import (
    SHORT,
    CrossAttention,
    RowDropout,
    attend,
    init_weights,
    key_bias,
    merge_heads,
    split_heads,
)


@pytest.mark.parametrize("num_keys", [SHORT, SHORT + 1])
def test_short_and_long_attention_are_the_same_attention(num_keys):
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.double) for n in (5, num_keys, num_keys))
    bias = torch.randn(3, 5, num_keys, dtype=torch.double)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.expand(2, -1, -1, -1), scale=1.0
    )
    torch.testing.assert_close(attend(query, key, value, bias), expected)


def test_splitting_and_merging_heads_is_the_identity():
    x = torch.randn(2, 5, 12)
    assert torch.equal(merge_heads(split_heads(x, 4)), x)
    assert split_heads(x, 4).shape == (2, 3, 5, 4)
    assert split_heads(x[..., :4], 4).shape == (2, 1, 5, 4)  # a worker with one head of three


def test_hidden_keys_have_no_weight_and_a_row_without_keys_is_finite():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    weights = key_bias(mask, torch.float32).softmax(-1)[:, 0, 0]
    assert torch.equal(weights[0], torch.tensor([0.5, 0.0, 0.5]))
    assert weights[1].isfinite().all()


def test_cross_attention_equals_torchs_own():
    ours, theirs = (
        CrossAttention(8, 6, 2).double(),
        nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True),
    )
    theirs.double()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(ours.key.weight)
        theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key.bias, ours.value.bias)))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    x, memory = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 6).double()
    mask = torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    expected, _ = theirs(x, memory, memory, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, memory, mask), expected)


def test_weights_are_drawn_within_two_sigma_and_follow_the_seed():
    def draw():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(40, 50), nn.Embedding(30, 20)).apply(init_weights)

    first, second = draw(), draw()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first[0].bias.count_nonzero() == 0
    for layer, sigma in ((first[0], 40**-0.5), (first[1], 0.02)):
        assert layer.weight.abs().max() <= 2 * sigma
        assert layer.weight.std().item() == pytest.approx(sigma * 0.88, rel=0.05)  # a normal cut at two sigma


def test_a_linear_layer_keeps_a_signals_size_at_any_width():
    for width in (16, 512):
        torch.manual_seed(0)
        layer = nn.Linear(width, width)
        init_weights(layer)
        assert layer(torch.randn(256, width)).std().item() == pytest.approx(0.88, rel=0.05)


def test_a_row_drops_the_same_wherever_it_is_computed():
    x, seeds = torch.ones(6, 500, 8), torch.tensor([3, 2**62 + 3, -9, 0, 1, 3])
    dropout = RowDropout(0.5)
    dropped = dropout(x, seeds)
    assert torch.equal(dropped[4:], dropout(x[4:], seeds[4:]))
    assert torch.equal(dropped[0], dropped[5])
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(float((dropped == 0).float().mean()) - 0.5) < 0.01
    another = RowDropout(0.5)
    another.salt = 1
    masks = torch.stack([*(row.flatten() == 0 for row in dropped[:5]), another(x, seeds)[0].flatten() == 0])
    together = (masks[:, None] & masks[None, :]).float().mean(dim=-1)
    apart = together[~torch.eye(6, dtype=torch.bool)]  # of independent masks it is a quarter
    assert (apart - 0.25).abs().max() < 0.03
    assert dropout(x, None) is x


def test_a_whole_row_is_dropped_or_kept():
    dropped = RowDropout(0.5, whole=True)(torch.ones(4000, 3, 2), torch.arange(4000))
    per_row = dropped.flatten(1)
    assert torch.equal(per_row.min(dim=1).values, per_row.max(dim=1).values)
    assert abs(float(per_row[:, 0].mean()) - 1) < 0.06

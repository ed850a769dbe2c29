import pytest
import torch

from eagleray.models import text
from eagleray.models.spec import TextSpec
from eagleray.models.text import RelativeAttention, TextEncoder, align_distances, sinusoid


def encoder(num_layers=2, memory_length=32, max_tokens=32, window=0):
    torch.manual_seed(0)
    spec = TextSpec(
        d_model=16,
        num_layers=num_layers,
        num_heads=2,
        memory_length=memory_length,
        max_tokens=max_tokens,
        window=window,
    )
    model = TextEncoder(spec, 50).double().eval()
    for parameter in model.parameters():  # large weights, so that what reaches a position shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def by_segments(model, tokens, length):
    memory, hidden = None, []
    for segment in tokens.split(length, dim=1):
        part, memory = model(segment, memory)
        hidden.append(part)
    return torch.cat(hidden, dim=1)


def test_attention_is_the_papers_equation():
    layer = RelativeAttention(8, 2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, past = torch.randn(1, 3, 8, dtype=torch.double), torch.randn(1, 2, 8, dtype=torch.double)
    context = torch.cat((past, x), dim=1)
    mixed = torch.zeros(3, 8, dtype=torch.double)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        query = layer.query(x)[0, :, part]
        key, value = layer.key(context)[0, :, part], layer.value(context)[0, :, part]
        relative = layer.per_head(sinusoid(torch.arange(5), 8).double())[:, part]
        u, v = layer.content_bias.weight[head, 0], layer.distance_bias.weight[head, 0]
        for i in range(3):
            keys = range(i + 3)  # two remembered, and itself
            scores = torch.stack(
                [(query[i] + u) @ key[j] + (query[i] + v) @ relative[i + 2 - j] for j in keys]
            )
            mixed[i, part] = (scores / 2).softmax(0) @ value[: i + 3]
    torch.testing.assert_close(layer(x, context, 3, 2)[0], layer.output(mixed))


@pytest.mark.parametrize(("num_queries", "length"), [(1, 1), (4, 4), (3, 8)])
def test_aligning_moves_each_distance_to_its_key(num_queries, length):
    scores = torch.randn(2, 3, num_queries, length)
    aligned = align_distances(scores)
    for i in range(num_queries):
        for j in range(length - num_queries + i + 1):
            distance = length - num_queries + i - j
            assert torch.equal(aligned[:, :, i, j], scores[:, :, i, length - 1 - distance])


def test_no_token_sees_a_later_one():
    model = encoder()
    embedded = model.embed(torch.arange(10)[None]).detach().requires_grad_()
    hidden = embedded
    for block in model.blocks:
        hidden = block(hidden)
    for t in range(10):
        (gradient,) = torch.autograd.grad(hidden[0, t].square().sum(), embedded, retain_graph=True)
        assert torch.equal(gradient[0].any(-1), torch.arange(10) <= t)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_segment_by_segment_equals_one_pass_if_memory_holds_all(num_layers, length):
    # a block's memory is its own input at earlier positions, which causality has made final: so this
    # holds for any depth, up to rounding
    model = encoder(num_layers, memory_length=24, max_tokens=24)
    tokens = torch.randint(0, 50, (2, 24))
    whole, _ = model(tokens)
    torch.testing.assert_close(by_segments(model, tokens, length), whole, atol=1e-12, rtol=0)


def test_segment_by_segment_equals_one_pass_in_single_precision():
    model = encoder(3, memory_length=24).float()
    tokens = torch.randint(0, 50, (2, 24))
    torch.testing.assert_close(by_segments(model, tokens, 6), model(tokens)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_each_layer_reaches_one_memory_further_back(num_layers):
    model = encoder(num_layers, memory_length=4)
    tokens = torch.randint(0, 50, (1, 24))
    before = by_segments(model, tokens, 4)
    reached = []
    for t in range(24):
        moved = tokens.clone()
        moved[0, t] = (moved[0, t] + 1) % 50
        reached.append(not torch.equal(by_segments(model, moved, 4)[0, -4:], before[0, -4:]))
    first = 24 - 4 * (num_layers + 1)  # the last segment, and one memory of 4 per layer
    assert reached == [t >= first for t in range(24)]


def test_no_gradient_flows_into_memory():
    model = encoder()
    _, memory = model(torch.randint(0, 50, (2, 8)))
    assert all(not past.requires_grad for past in memory)
    given = torch.randn(2, 4, 16, dtype=torch.double, requires_grad=True)
    hidden = torch.randn(2, 4, 16, dtype=torch.double, requires_grad=True)
    ours, theirs = torch.autograd.grad(
        model.blocks[0](hidden, given).sum(), (hidden, given), allow_unused=True
    )
    assert ours.any()
    assert theirs is None


@pytest.mark.parametrize("memory_length", [0, 3, 20])
def test_memory_is_no_longer_than_asked(memory_length):
    model = encoder(memory_length=memory_length)
    _, memory = model(torch.randint(0, 50, (2, 8)))
    hidden, memory = model(torch.randint(0, 50, (2, 8)), memory)
    assert [past.shape[1] for past in memory] == [min(16, memory_length)] * 2
    assert hidden.isfinite().all()


def test_what_follows_a_text_does_not_change_it():
    model = encoder()
    tokens = torch.randint(3, 50, (1, 12))
    padded = torch.cat((tokens, torch.zeros(1, 6, dtype=torch.long)), dim=1)
    torch.testing.assert_close(model(padded)[0][:, :12], model(tokens)[0])


@pytest.mark.parametrize(("memory_length", "window"), [(0, 0), (3, 0), (8, 0), (32, 0), (8, 6)])
def test_a_long_text_is_taken_segment_after_segment(memory_length, window):
    model = encoder(3, memory_length, max_tokens=5, window=window)
    tokens, earlier = torch.randint(0, 50, (2, 23)), torch.randint(0, 50, (2, 4))
    found = {}
    for name, encode in (("whole", lambda t, m: model(t, m)[0]), ("parts", None)):
        model.zero_grad()
        _, memory = model(earlier)
        if encode is not None:
            hidden = encode(tokens, memory)
        else:
            parts = []
            for segment in tokens.split(5, dim=1):
                part, memory = model(segment, memory)
                parts.append(part)
            hidden = torch.cat(parts, dim=1)
        hidden.square().sum().backward()
        found[name] = [hidden.detach(), *(p.grad.clone() for p in model.parameters())]
    for whole, parts in zip(found["whole"], found["parts"], strict=True):
        torch.testing.assert_close(whole, parts)


def gradients(layer, x, known):
    layer.zero_grad()
    layer(x, known, 20, 20).square().sum().backward()
    return [parameter.grad.clone() for parameter in layer.parameters()]


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("num_queries", [7, 20])
def test_queries_in_blocks_give_what_all_at_once_give(monkeypatch, window, num_queries):
    layer = RelativeAttention(8, 2, window).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    known = torch.randn(2, 20, 8, dtype=torch.double)
    x = known[:, -num_queries:]
    whole, expected = layer(x, known, 20, 20), gradients(layer, x, known)
    monkeypatch.setattr(text, "SCORES", 3 * 20)
    monkeypatch.setattr(text, "QUERIES", 3)
    torch.testing.assert_close(layer(x, known, 20, 20), whole)
    for found, gradient in zip(gradients(layer, x, known), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, known, 20, 20), whole)


def test_a_window_hides_what_lies_further_back():
    model = encoder(num_layers=1, window=4)
    tokens = torch.randint(0, 50, (1, 12))
    before = model(tokens)[0]
    for t in range(12):
        moved = tokens.clone()
        moved[0, t] = (moved[0, t] + 1) % 50
        changed = (model(moved)[0] != before)[0].any(-1)
        assert torch.equal(changed, (torch.arange(12) >= t) & (torch.arange(12) < t + 4))


@pytest.mark.parametrize("length", [1, 3, 8])
def test_segment_by_segment_equals_one_pass_if_memory_holds_the_window(length):
    model = encoder(3, memory_length=4, max_tokens=24, window=5)
    tokens = torch.randint(0, 50, (2, 24))
    torch.testing.assert_close(by_segments(model, tokens, length), model(tokens)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 3, 2]])
def test_token_by_token_equals_one_pass(chunks):
    model = encoder(3)
    tokens = torch.randint(0, 50, (2, 12))
    caches, hidden = model.start(12), []
    with torch.no_grad():
        for part in tokens.split(chunks, dim=1):
            found, caches = model.step(part, caches)
            hidden.append(found)
        torch.testing.assert_close(torch.cat(hidden, dim=1), model(tokens)[0], atol=1e-12, rtol=0)


def test_a_full_cache_forgets_as_a_window_does():
    model, windowed = encoder(3), encoder(3, window=5)
    tokens = torch.randint(0, 50, (2, 24))
    caches, hidden = model.start(5), []
    with torch.no_grad():
        for part in tokens.split(1, dim=1):
            found, caches = model.step(part, caches)
            hidden.append(found)
        torch.testing.assert_close(torch.cat(hidden, dim=1), windowed(tokens)[0], atol=1e-12, rtol=0)
    assert all(cache.past.key.shape[2] == 5 for cache in caches)


def test_16384_tokens_of_context_are_equal_cached_and_uncached():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 1, "memory_length": 16384}
    model = TextEncoder(TextSpec(max_tokens=512, **sizes), 50).eval()
    whole = TextEncoder(TextSpec(max_tokens=16384, **sizes), 50).eval()
    whole.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 50, (1, 16384))
    with torch.no_grad():
        expected = whole(tokens)[0]
        found = by_segments(model, tokens, 512)
        torch.testing.assert_close(model(tokens)[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        _, caches = whole.step(tokens[:, :-3], whole.start(16384))
        last, caches = whole.step(tokens[:, -3:-2], caches)
        torch.testing.assert_close(last, expected[:, -3:-2], atol=1e-5, rtol=0)
        tokens[0, 0] = (tokens[0, 0] + 1) % 50
        assert not torch.equal(whole(tokens)[0][0, -1], expected[0, -1])  # the last sees the first


def test_memory_has_a_gradient_in_every_weight_that_reads_it():
    block = encoder(1).blocks[0]
    past, hidden = (torch.randn(2, length, 16, dtype=torch.double) for length in (3, 4))
    block(hidden, past).square().sum().backward()
    found = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    context = block.norm_attention(torch.cat((past, hidden), dim=1))  # one projection, as in the paper
    x = hidden + block.attention(context[:, 3:], context, 4, 3)
    (x + block.mlp(block.norm_mlp(x))).square().sum().backward()
    for mine, parameter in zip(found, block.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagleray.models.decoding import JointDecoder, ModalityGate
from eagleray.models.spec import MODALITIES, DecoderSpec

WIDTHS = {"image": 6, "text": 8, "speech": 10}
SPEC = DecoderSpec(d_model=8, num_layers=2, num_heads=2)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return JointDecoder(SPEC, 20, WIDTHS).double()


def evidence(batch=2, num_positions=4):
    torch.manual_seed(1)
    mask = torch.ones(batch, num_positions, dtype=torch.bool)
    return {m: (torch.randn(batch, num_positions, w, dtype=torch.double), mask) for m, w in WIDTHS.items()}


def tokens(batch=2):
    return torch.arange(5 * batch).view(batch, 5)


def learned(width, **spec):
    gate = ModalityGate(width, DecoderSpec(**spec))
    torch.nn.init.normal_(gate.score.weight)
    return gate


@given(present=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_gate_weighs_only_what_is_present(present):
    mask = torch.tensor(present)
    weights = learned(4)(torch.randn(len(present), 4) * 100, torch.full((len(present),), -1), mask)
    assert (weights[~mask] == 0).all()
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())


def test_gates_gradient_is_finite_even_if_nothing_is_present():
    gate, question = learned(4), torch.randn(2, 4, requires_grad=True)
    weights = gate(question, torch.tensor([-1, 0]), torch.tensor([[False] * 3, [True, False, True]]))
    (gradient,) = torch.autograd.grad(weights[:, 0].sum(), question)
    assert not gradient[0].any()
    assert gradient[1].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("absent", MODALITIES)
@pytest.mark.parametrize("fill", [0.0, 1e30, math.nan, math.inf])
def test_absent_bytes_change_nothing(decoder, absent, fill):
    memories, weights = evidence(), torch.full((2, 3), 0.5, dtype=torch.double)
    weights[0, MODALITIES.index(absent)] = 0
    expected = decoder(tokens(), memories, weights)
    hidden, mask = memories[absent]
    hidden = hidden.clone()
    hidden[0] = fill
    hidden.requires_grad_()
    actual = decoder(tokens(), {**memories, absent: (hidden, mask)}, weights)
    assert torch.equal(actual, expected)
    (gradient,) = torch.autograd.grad(actual.square().sum(), hidden)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_absent_is_as_if_never_given(decoder):
    memories, weights = evidence(), torch.tensor([[0.4, 0.0, 0.6]] * 2, dtype=torch.double)
    without = {m: memories[m] for m in ("image", "speech")}
    assert torch.equal(decoder(tokens(), memories, weights), decoder(tokens(), without, weights))


def test_a_row_without_evidence_is_decoded_from_its_words_alone(decoder):
    nothing = {
        m: (torch.full_like(h, math.nan), torch.zeros_like(mask)) for m, (h, mask) in evidence().items()
    }
    weights = torch.zeros(2, 3, dtype=torch.double)
    logits = decoder(tokens(), nothing, weights)
    assert torch.equal(logits, decoder(tokens(), {}, weights))
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_masked_positions_are_never_read(decoder):
    memories, weights = evidence(), torch.full((2, 3), 1 / 3, dtype=torch.double)
    hidden, _ = memories["speech"]
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    hidden = hidden.masked_fill(~mask[:, :, None], math.nan)
    short = decoder(tokens(), {**memories, "speech": (hidden, mask)}, weights)
    cut = {**memories, "speech": (hidden[:1, :2], mask[:1, :2])}
    alone = decoder(tokens()[:1], {m: (h[:1], k[:1]) for m, (h, k) in cut.items()}, weights[:1])
    torch.testing.assert_close(short[:1], alone)


def test_evidence_counts_by_its_weight(decoder):
    block, memories = decoder.blocks[0], evidence()
    block.mlp.down.weight.data.zero_()
    hidden = torch.randn(2, 5, 8, dtype=torch.double)

    def gain(weight):
        weights = torch.zeros(2, 3, dtype=torch.double)
        weights[:, 0] = weight
        return block(hidden, memories, weights) - block(hidden, memories, torch.zeros_like(weights))

    torch.testing.assert_close(gain(0.25) * 4, gain(1.0))


def test_no_token_sees_a_later_one(decoder):
    memories, weights = evidence(1), torch.full((1, 3), 1 / 3, dtype=torch.double)
    embedded = decoder.embed(tokens(1)).detach().requires_grad_()
    hidden = embedded
    for block in decoder.blocks:
        hidden = block(hidden, memories, weights)
    for t in range(5):
        (gradient,) = torch.autograd.grad(hidden[0, t].square().sum(), embedded, retain_graph=True)
        assert torch.equal(gradient[0].any(-1), torch.arange(5) <= t)


def test_a_colour_question_looks_at_the_picture_before_training():
    spec = DecoderSpec()
    gate = ModalityGate(8, spec)
    questions = ["What colour is the frog?", "Where is it?", "How many birds are there?", "Why?"]
    kinds = torch.tensor([spec.question_type(question) for question in questions])
    present = torch.tensor([[True, True, False]] * 4)
    weights = gate(torch.randn(4, 8), kinds, present)
    expected = torch.tensor([[0.7, 0.3, 0], [0.8, 0.2, 0], [0.9, 0.1, 0], [0.5, 0.5, 0]])
    torch.testing.assert_close(weights, expected)
    assert spec.question_type("What do colourful birds eat?") == -1  # a part of a word is no word


def test_the_gate_learns_from_there():
    gate, question, kind = ModalityGate(8, DecoderSpec()), torch.randn(1, 8), torch.tensor([0])
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (-gate(question, kind, torch.tensor([[True, True, False]]))[0, 1]).backward()
        optimizer.step()
    assert gate(question, kind, torch.tensor([[True, True, False]]))[0, 1] > 0.9


@pytest.mark.parametrize(("mode", "expected"), [("table", [0.7, 0.3, 0.0]), ("equal", [0.5, 0.5, 0.0])])
def test_a_gate_that_is_not_learned_has_nothing_to_learn(mode, expected):
    gate = ModalityGate(8, DecoderSpec(gate=mode))
    assert not list(gate.parameters())
    weights = gate(torch.randn(1, 8), torch.tensor([0]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([expected]))


def test_generation_token_by_token_is_what_the_whole_pass_finds(decoder):
    torch.nn.init.normal_(decoder.head.weight)
    memories, weights = evidence(), torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]], dtype=torch.double)
    made = decoder.generate(memories, weights, begin=1, end=19, max_tokens=7)
    for row in range(2):
        said = [1]
        for place, token in enumerate(made.tokens[row, : made.lengths[row] + 1].tolist()):
            alone = {m: (h[row : row + 1], k[row : row + 1]) for m, (h, k) in memories.items()}
            logits = decoder(torch.tensor([said]), alone, weights[row : row + 1])[0, -1].log_softmax(-1)
            assert logits.argmax() == token
            assert made.log_probs[row, place].item() == pytest.approx(logits[token].item())
            said.append(token)


def test_a_text_ends_where_its_end_is_said(decoder):
    torch.nn.init.zeros_(decoder.head.weight)
    decoder.head.bias.data = torch.arange(20.0).double()
    weights = torch.full((2, 3), 1 / 3, dtype=torch.double)
    ended = decoder.generate(evidence(), weights, begin=1, end=19, max_tokens=5)
    assert ended.tokens.tolist() == [[19], [19]]
    assert ended.lengths.tolist() == [0, 0]
    endless = decoder.generate(evidence(), weights, begin=1, end=3, max_tokens=5)
    assert endless.tokens.tolist() == [[19] * 5] * 2
    assert endless.lengths.tolist() == [5, 5]


@pytest.mark.parametrize("fill", [math.nan, math.inf, 1e30])
def test_an_answer_does_not_depend_on_the_bytes_of_what_is_absent(decoder, fill):
    memories, weights = evidence(), torch.tensor([[0.0, 0.4, 0.6]] * 2, dtype=torch.double)
    expected = decoder.generate(memories, weights, 1, 2, 6)
    hidden, mask = memories["image"]
    again = decoder.generate({**memories, "image": (torch.full_like(hidden, fill), mask)}, weights, 1, 2, 6)
    assert torch.equal(again.tokens, expected.tokens)
    assert torch.equal(again.log_probs, expected.log_probs)

from itertools import groupby, product

import pytest
import torch

from eagleray.models.heads.transcription import (
    BLANK,
    TranscriptionHead,
    beam_search,
    ctc_nll,
    fits,
    greedy,
)


@pytest.fixture
def log_probs():
    torch.manual_seed(3)
    return torch.randn(1, 5, 4).mul(1.5).log_softmax(-1)


def texts(log_probs):
    """Text → probability, by going through all paths."""
    found = {}
    num_positions, num_tokens = log_probs.shape[1:]
    for path in product(range(num_tokens), repeat=num_positions):
        text = tuple(token for token, _ in groupby(path) if token != BLANK)
        chance = sum(log_probs[0, t, token] for t, token in enumerate(path)).exp().item()
        found[text] = found.get(text, 0.0) + chance
    return found


EVERYWHERE = torch.ones(1, 5, dtype=torch.bool)


def test_loss_is_the_probability_of_all_alignments(log_probs):
    chances = texts(log_probs)
    for text in ((1,), (2, 1), (3, 3)):
        tokens = torch.tensor([text])
        nll = ctc_nll(log_probs, EVERYWHERE, tokens, torch.ones_like(tokens, dtype=torch.bool))
        assert nll.exp().item() == pytest.approx(1 / chances[text], rel=1e-4)


def test_beam_search_finds_the_likeliest_text_with_its_probability(log_probs):
    chances = texts(log_probs)
    best = max(chances, key=chances.get)
    ((found, score),) = beam_search(log_probs, EVERYWHERE, 200)
    assert tuple(found) == best
    assert score == pytest.approx(torch.tensor(chances[best]).log().item(), rel=1e-4)


def test_beam_search_finds_what_greedy_misses():
    # two positions, each likeliest blank; but 'a' in either or both is likelier than none
    row = torch.tensor([[[0.55, 0.45], [0.55, 0.45]]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert greedy(row, mask) == [[]]
    assert beam_search(row, mask, 10)[0][0] == [1]


def test_greedy_joins_repetitions_unless_a_blank_parts_them():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 3]])
    scores = torch.nn.functional.one_hot(path, 4).float()
    assert greedy(scores, torch.ones(1, 8, dtype=torch.bool)) == [[1, 1, 2, 3]]
    assert greedy(scores, torch.arange(8)[None] < 5) == [[1, 1, 2]]


def test_positions_beyond_a_clip_count_in_nothing(log_probs):
    longer = torch.cat((log_probs, torch.randn(1, 3, 4).log_softmax(-1)), dim=1)
    mask = torch.arange(8)[None] < 5
    tokens, valid = torch.tensor([[2, 1, 3]]), torch.tensor([[True, True, False]])
    assert ctc_nll(longer, mask, tokens, valid) == ctc_nll(log_probs, EVERYWHERE, tokens, valid)
    assert beam_search(longer, mask, 50) == beam_search(log_probs, EVERYWHERE, 50)


def test_a_text_fits_where_any_alignment_has_it(log_probs):
    for positions in range(1, 6):
        possible = texts(log_probs[:, :positions])
        mask = torch.arange(5)[None] < positions
        for length in range(1, 5):
            for text in product(range(1, 4), repeat=length):
                tokens = torch.tensor([[*text, BLANK]])
                assert bool(fits(mask, tokens, tokens > 0)) == (text in possible)
    assert not fits(EVERYWHERE, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))


def test_what_can_not_be_said_counts_as_nothing():
    head = TranscriptionHead(8, 5)
    log_probs = head(torch.randn(3, 2, 8))
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    tokens = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 0, 0]])
    nll = ctc_nll(log_probs, mask, tokens, tokens > 0)
    assert nll[0] == 0  # three tokens in two positions
    assert nll[1] > 0
    assert nll[2] == 0
    nll.sum().backward()
    assert head.linear.weight.grad.isfinite().all()

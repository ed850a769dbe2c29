import pytest
import torch

from eagleray.models.heads.language import LanguageHead


@pytest.mark.parametrize("cutoffs", [(), (5,), (5, 12)])
def test_log_probabilities_are_a_distribution_and_agree_with_the_loss(cutoffs):
    torch.manual_seed(0)
    head = LanguageHead(16, 20, cutoffs).double()
    hidden = torch.randn(2, 3, 16, dtype=torch.double)
    targets = torch.tensor([[0, 4, 5], [11, 12, 19]])
    said = head(hidden)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(2, 3, dtype=torch.double))
    torch.testing.assert_close(head.nll(hidden, targets), -said.gather(-1, targets[..., None])[..., 0])


def test_an_adaptive_head_is_smaller():
    def size(head):
        return sum(p.numel() for p in head.parameters())

    assert size(LanguageHead(64, 2000, (200, 800))) < size(LanguageHead(64, 2000)) / 2


def test_cutoffs_beyond_the_vocabulary_leave_a_plain_softmax():
    assert LanguageHead(8, 20, (20, 50)).adaptive is None

"""Documents read in segments: what is told as evidence is what was decided by."""

import pytest
import torch

from eagleray.models.heads.document import DocumentHead, pooled, segmented
from eagleray.models.multimodal import MultimodalModel, documented
from eagleray.models.spec import ModelSpec


def model_of(**text) -> MultimodalModel:
    spec = ModelSpec.model_validate(
        {
            "vision": None,
            "audio": None,
            "decoder": None,
            "text": {
                **{"d_model": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 8, "overlap": 3},
                **text,
            },
        }
    )
    return MultimodalModel(spec, 40, 3, ["document"]).eval()


def documents(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, 40, mask.shape, generator=torch.Generator().manual_seed(0))
    return tokens.masked_fill(~mask, 0), mask


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (8, 1), (9, 2), (13, 2), (14, 3)])
def test_each_token_is_in_a_segment_and_neighbours_overlap(length, expected):
    found = segmented(torch.arange(1, length + 1)[None], 8, 3)
    assert found.shape == (1, expected, 8)
    assert set(range(1, length + 1)) <= set(found.flatten().tolist())
    for one, following in zip(found[0], found[0, 1:], strict=False):
        assert torch.equal(one[-3:], following[:3])


def test_padding_changes_nothing():
    model, (tokens, mask) = model_of(), documents(20, 5)
    together = model.classify_documents(tokens, mask)
    alone = model.classify_documents(tokens[1:, :5], mask[1:, :5])
    torch.testing.assert_close(together[1:], alone)


def test_evidence_adds_up_to_the_logits():
    model, (tokens, mask) = model_of(), documents(20)
    found = model.read_segments(*(segmented(one, 8, 3).flatten(0, 1) for one in (tokens, mask)))
    by_token = found.scores.softmax(dim=0)[:, None, None] * found.evidence
    torch.testing.assert_close(by_token.sum(dim=(0, 1)), model.classify_documents(tokens, mask)[0])


def test_a_document_without_a_token_says_nothing_and_learns_nothing():
    head = DocumentHead(4, 3)
    hidden = torch.full((2, 5, 4), torch.nan, requires_grad=True)
    found = head(hidden, torch.zeros(2, 5, dtype=torch.bool))
    logits = pooled(found.evidence.sum(dim=1), found.scores, 1)
    assert not logits.any()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_training_reads_what_evaluation_reads():
    model, (tokens, mask) = model_of(), documents(20, 5, 11)
    batch = {
        "tokens": tokens,
        "token_mask": mask,
        "label": torch.tensor([2, -1, 0]),
        "present": torch.tensor([[False, True, False]] * 3),
    }
    logits = model.classify_documents(tokens, mask)
    expected = -logits.log_softmax(dim=-1)[[0, 2], [2, 0]]
    torch.testing.assert_close(model(batch)["document"][[0, 2]], expected)
    assert model(batch)["document"][1] == 0
    assert documented(batch | {"token_mask": torch.zeros_like(mask)}).tolist() == [-1, -1, -1]


def test_memory_does_not_grow_with_what_is_read_at_once(monkeypatch):
    model, (tokens, mask) = model_of(), documents(400)
    whole = model.classify_documents(tokens, mask)
    monkeypatch.setattr("eagleray.models.multimodal.SEGMENTS", 3)
    torch.testing.assert_close(model.classify_documents(tokens, mask), whole)

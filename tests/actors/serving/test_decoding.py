"""Answers by a bundle's graphs are those of the model, alone or in a batch that others join and leave."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from eagleray.actors.serving.decoding import Answer, AnswerBatch, Sampling, choose, release
from eagleray.pipelines.spec import BOS, EOS, PAD

QUESTIONS = ("What colour is the frog?", "Where is it?", "How many drums are there?", "Say something.")
LONGEST = Sampling(max_tokens=100)


@pytest.fixture(scope="module")
def asked(loaded_bundle, png, wav):
    """Evidence for four questions: with a picture, with a picture and speech, with speech, and alone."""
    image = loaded_bundle.encode("image", [loaded_bundle.prepare_image(png)])[0]
    speech = loaded_bundle.encode("speech", [loaded_bundle.prepare_speech(wav)])[0]
    shown = ({"image": image}, {"image": image, "speech": speech}, {"speech": speech}, {})
    texts = loaded_bundle.encode("text", [loaded_bundle.prepare_text(question) for question in QUESTIONS])
    rows = [{"text": text, **more} for text, more in zip(texts, shown, strict=True)]
    return rows, [loaded_bundle.decoding.question_type(question) for question in QUESTIONS]


def answer(bundle, rows, kinds, sampling):
    batch = AnswerBatch(bundle)
    batch.join(bundle.gather(rows, kinds), [sampling] * len(rows))
    answers = list(batch.answers)
    while batch.answers:
        batch.step()
    return answers


def tokens(answers):
    return [[piece.token for piece in one.pieces] for one in answers]


def test_the_type_of_a_question_is_told_as_in_training(loaded_bundle, model):
    for question in QUESTIONS:
        assert loaded_bundle.decoding.question_type(question) == model.spec.decoder.question_type(question)
    assert [loaded_bundle.decoding.question_type(question) for question in QUESTIONS] == [0, 1, 2, -1]


def test_answers_weights_and_probabilities_are_the_models(loaded_bundle, model, asked, png, wav):
    rows, kinds = asked
    image, speech = loaded_bundle.prepare_image(png), loaded_bundle.prepare_speech(wav)
    texts = [loaded_bundle.prepare_text(question) for question in QUESTIONS]
    batch = {
        "image": torch.from_numpy(np.stack([image["image"]] * 4)),
        "tokens": torch.from_numpy(np.stack([text["tokens"] for text in texts])),
        "token_mask": torch.from_numpy(np.stack([text["token_mask"] for text in texts])),
        "mel": torch.from_numpy(np.stack([speech["mel"]] * 4)),
        "mel_mask": torch.from_numpy(np.stack([speech["mel_mask"]] * 4)),
        "present": torch.tensor([["image" in row, True, "speech" in row] for row in rows]),
        "question_type": torch.tensor(kinds),
    }
    longest = AnswerBatch(loaded_bundle).max_tokens
    made, weights = model.answer(batch, BOS, EOS, longest)
    ours = answer(loaded_bundle, rows, kinds, Sampling(longest))
    for i, one in enumerate(ours):
        length = len(one.pieces)
        assert [piece.token for piece in one.pieces] == made.tokens[i, :length].tolist()
        assert length == longest or one.pieces[-1].token == EOS
        np.testing.assert_allclose(one.weights, weights[i].numpy(), atol=1e-5)
        found = [piece.log_prob for piece in one.pieces]
        np.testing.assert_allclose(found, made.log_probs[i, :length].numpy(), atol=1e-3)


def test_where_an_answer_was_found_adds_up_and_is_nothing_of_what_is_absent(loaded_bundle, asked):
    rows, kinds = asked
    for row, one in zip(rows, answer(loaded_bundle, rows, kinds, Sampling(5)), strict=True):
        assert sum(found.sum() for found in one.maps.values()) == pytest.approx(1, abs=1e-5)
        for i, modality in enumerate(("image", "text", "speech")):
            assert one.maps[modality].sum() == pytest.approx(one.weights[i], abs=1e-5)
            assert (one.maps[modality].sum() > 0) == (modality in row)


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_whoever_joins_or_leaves_between_tokens_changes_nothing(loaded_bundle, asked, data):
    rows, kinds = asked
    alone = tokens(
        answer(loaded_bundle, [row], [kind], Sampling(6))[0] for row, kind in zip(rows, kinds, strict=True)
    )
    batch, waiting, known = AnswerBatch(loaded_bundle), [0, 1, 2, 3], {}
    while waiting or batch.answers:
        joining = data.draw(st.integers(0 if batch.answers else 1, len(waiting))) if waiting else 0
        if joining:
            new, waiting = waiting[:joining], waiting[joining:]
            evidence = loaded_bundle.gather([rows[i] for i in new], [kinds[i] for i in new])
            known |= dict(zip(new, batch.join(evidence, [Sampling(6)] * joining), strict=True))
        if len(batch.answers) > 1 and data.draw(st.booleans()):
            leaving = batch.answers[0]
            batch.leave(leaving)
            known = {i: one for i, one in known.items() if one is not leaving}
        batch.step()
    for i, one in known.items():
        assert tokens([one]) == [alone[i]]


def test_a_seed_decides_what_is_drawn(loaded_bundle, asked):
    rows, kinds = asked

    def drawn(seed):
        return tokens(answer(loaded_bundle, rows, kinds, Sampling(8, temperature=1.5, seed=seed)))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_no_answer_is_longer_than_asked_for_or_than_the_model(loaded_bundle, asked):
    rows, kinds = asked
    for one in answer(loaded_bundle, rows, kinds, Sampling(2)):
        assert len(one.pieces) <= 2
        assert one.pieces[-1].end in ("length", "stop")


def log_probs(*values):
    return np.log(np.array([*([1e-9] * 3), *values], np.float32))


def test_the_likeliest_token_is_taken_but_never_one_that_says_nothing():
    random = np.random.default_rng(0)
    assert choose(log_probs(0.2, 0.5, 0.3), Sampling(1), random) == 4
    loud = np.zeros(6, np.float32)
    loud[[PAD, BOS]] = 9
    assert choose(loud, Sampling(1), random) not in (PAD, BOS)


def test_draws_follow_the_probabilities_and_top_p_cuts_the_tail():
    random = np.random.default_rng(0)
    scores = log_probs(0.6, 0.3, 0.1)
    all_of_them = [choose(scores, Sampling(1, temperature=1.0), random) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(all_of_them)[3:] / 4000, [0.6, 0.3, 0.1], atol=0.03)
    nucleus = [choose(scores, Sampling(1, temperature=1.0, top_p=0.8), random) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(nucleus)[3:] / 4000, [2 / 3, 1 / 3], atol=0.03)
    cold = {choose(scores, Sampling(1, temperature=0.01), random) for _ in range(100)}
    assert cold == {3}


@pytest.mark.parametrize(
    ("held", "final", "told", "stopped"),
    [
        ("a red frog", False, "a red frog", False),
        ("a red. No", False, "a red", True),
        ("a red", True, "a red", False),
        ("a red\n", False, "a red", False),
        ("a red\n", True, "a red\n", False),
        ("a red\n\nfrog", False, "a red", True),
        ("", False, "", False),
    ],
)
def test_a_stop_ends_a_text_and_what_may_become_one_waits(held, final, told, stopped):
    assert release(held, (".", "\n\n"), final=final) == (told, stopped)


def test_a_letter_of_several_bytes_is_told_when_it_is_whole(loaded_bundle):
    tokenizer: Tokenizer = loaded_bundle.tokenizer
    numbers = tokenizer.encode("¿día?", add_special_tokens=False).ids
    one = Answer(LONGEST, np.ones(3, np.float32))
    told = []
    for number in numbers:
        scores = np.full(tokenizer.get_vocab_size(), -9, np.float32)
        scores[number] = 0
        told.append(one.add(scores, {}, tokenizer).text)
    assert "".join(told).strip() == "¿día?"
    assert all("\ufffd" not in text for text in told)
    assert "" in told

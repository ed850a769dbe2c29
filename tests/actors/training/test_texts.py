"""Metrics of what a model says are what it says, counted by hand."""

import math

import jiwer
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from eagleray.actors.training.data import make_batch
from eagleray.actors.training.metrics import Bootstrap
from eagleray.actors.training.texts import answer_accuracies, bits_per_byte, plain, word_error_rates
from eagleray.models.heads.transcription import greedy
from eagleray.models.multimodal import MultimodalModel
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.spec import BOS, EOS

from ..conftest import MODEL

HOW = Bootstrap(200, 0.95, 0)


def silent(done, total):
    assert 0 < done <= total


def build(reader, tasks, **parts):
    torch.manual_seed(0)
    model = MODEL.model_copy(update=parts)
    return MultimodalModel(model, reader.info.vocab_size, len(reader.info.classes), tasks).eval()


def test_bits_a_byte_are_the_texts_probability_over_its_size(documents_folder):
    reader = CorpusReader(documents_folder, "train")
    text = MODEL.text.model_copy(update={"max_tokens": 16, "memory_length": 8})
    model = build(reader, ("language",), vision=None, audio=None, decoder=None, text=text)
    found = bits_per_byte(model, reader, (), HOW, silent)
    bits, size = 0.0, 0
    for record in reader.table(np.arange(len(reader)), ["text", "text_tokens"]).to_pylist():
        memory, hidden, tokens = None, [], torch.tensor([record["text_tokens"]])
        with torch.no_grad():
            for segment in tokens.split(16, dim=1):
                part, memory = model.text(segment, memory)
                hidden.append(part)
            said = model.heads.language(torch.cat(hidden, dim=1)[0, :-1])
        bits -= said.gather(1, tokens[0, 1:, None]).sum().item() / math.log(2)
        size += len(record["text"].encode())
    assert [row["name"] for row in found] == ["bits per byte, memory 8"]
    assert found[0]["value"] == pytest.approx(bits / size, rel=1e-5)
    several = bits_per_byte(model, reader, (0, 8, 10_000), HOW, silent)
    assert several[1] == found[0]
    assert len({row["value"] for row in several}) == 3
    assert model.text.memory_length == model.text.blocks[0].memory == 8  # as it was


def test_word_errors_are_counted_over_all_clips(corpus_folder):
    reader = CorpusReader(corpus_folder, "train")
    audio = MODEL.audio.model_copy(update={"num_convs": 1})
    model = build(reader, ("transcription",), vision=None, text=None, decoder=None, audio=audio)
    tokenizer = corpus_folder / "tokenizer.json"
    by_greedy, by_beams = word_error_rates(model, reader, tokenizer, 4, 5, HOW, silent)
    spoken = [
        row
        for row in reader.table(np.arange(len(reader)), ["captions", "speech"]).to_pylist()
        if row["speech"]
    ]
    assert by_greedy["queries"] == by_beams["queries"] == len(spoken)
    batch = make_batch(
        reader.examples(np.arange(len(reader)), None, transcript=True), model.spec, reader.info
    )
    kept = batch["mel_mask"].any(1)
    with torch.no_grad():
        said = greedy(*model.transcribe(batch["mel"][kept], batch["mel_mask"][kept]))
    texts = [plain(text) for text in Tokenizer.from_file(str(tokenizer)).decode_batch(said)]
    wanted = [plain(one["text"]) for row in spoken for one in row["captions"] if one["language"] == "es"]
    assert by_greedy["value"] == pytest.approx(jiwer.wer(wanted, texts))


def test_answers_are_right_word_by_word_and_by_type(questions_folder):
    reader = CorpusReader(questions_folder, "train")
    model = build(reader, ("answer",), audio=None)
    found = answer_accuracies(model, reader, questions_folder / "tokenizer.json", 7, HOW, silent)
    rows = {row["name"].partition(", ")[2]: row for row in found}
    assert set(rows) == {"all", "colour", "location", "count"}
    assert rows["all"]["queries"] == 36
    assert rows["colour"]["queries"] == 12
    batch = make_batch(reader.examples(np.arange(36), None), model.spec, reader.info)
    made, weights = model.answer(batch, BOS, EOS, batch["answer"].shape[1])
    lengths = batch["answer_mask"].sum(1) - 2  # without beginning and end
    right = [
        int(made.lengths[i]) == int(lengths[i])
        and torch.equal(made.tokens[i, : lengths[i]], batch["answer"][i, 1 : 1 + lengths[i]])
        for i in range(36)
    ]
    assert rows["all"]["value"] == pytest.approx(np.mean(right))
    colour = batch["question_type"] == 0
    assert (batch["label"] == -1).all()  # a type of question is no category of a picture
    torch.testing.assert_close(weights[colour], torch.tensor([[0.7, 0.3, 0.0]]).expand(12, 3))


def test_case_and_punctuation_make_no_difference():
    assert plain("Press  ONE, now!") == "press one now"

"""A peer's model, trained as a spec of `examples/results` trains ours: same rows, optimizer and budget.

    python beside.py cifar10 HOME      transformers' Swinv2 of the size of the stage `plain`
    python beside.py text HOME         a plain Transformer (GPT-2's) of the size of the stage `memory-0`

HOME is where `eagleray run examples/results/….yaml --home HOME` made the corpus. Prints the metric as
`evaluate` does. It runs in the environment of the tests, which has transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Swinv2Config, Swinv2ForImageClassification

from eagleray.actors.training.data import worker_steps
from eagleray.actors.training.metrics import Bootstrap, report, shown
from eagleray.actors.training.optimizer import LocalOptimizer, learning_rate
from eagleray.actors.training.retrieval import accuracy
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sequences import Sequences
from eagleray.pipelines.spec import PAD
from eagleray.session import Session
from eagleray.workflows.plan import Decision

ROOT = Path(__file__).resolve().parents[1]
HOW = Bootstrap(2000, 0.95, 0)
CPU = torch.device("cpu")


def train(
    model: nn.Module,
    spec: Any,
    corpus: Path,
    loss_of: Callable[[dict[str, Tensor]], Tensor],
) -> None:
    """Train a model on the rows that the stage would train on, with its optimizer."""
    torch.manual_seed(spec.seed)
    reader = CorpusReader(corpus, "train")
    optimizer = LocalOptimizer(spec.optimizer, dict(model.train().named_parameters()))
    for step, read in enumerate(worker_steps(Sequences(reader), spec.model, spec, 0, 0, 0, CPU)):
        loss = loss_of(read.passes[0][0])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.max_grad_norm)
        optimizer.step(learning_rate(spec.optimizer, step, spec.steps))
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"{step}/{spec.steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)


class Classifier(nn.Module):
    """What `accuracy` asks of a model."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def classify(self, image: Tensor) -> Tensor:
        """Category logits (B, K)."""
        return self.model(image).logits


def swin(spec: Any, corpus: Path) -> None:
    """Transformers' Swinv2 on pictures."""
    reader, vision = CorpusReader(corpus, "test"), spec.model.vision
    torch.manual_seed(spec.seed)
    model = Swinv2ForImageClassification(
        Swinv2Config(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            window_size=vision.window_size,
            embed_dim=vision.embed_dim,
            depths=list(vision.depths),
            num_heads=list(vision.num_heads),
            drop_path_rate=0.0,
            num_labels=len(reader.info.classes),
        )
    )
    train(model, spec, corpus, lambda batch: model(batch["image"], labels=batch["label"]).loss)
    for row in accuracy(Classifier(model.eval(), spec.model), reader, 64, HOW, lambda done, total: None):
        print(
            f"transformers' Swinv2, {sum(p.numel() for p in model.parameters()):,} parameters: {shown(row)}"
        )


def plain_transformer(spec: Any, corpus: Path) -> None:
    """GPT-2's Transformer on texts, segment by segment, without memory."""
    reader, text = CorpusReader(corpus, "test"), spec.model.text
    torch.manual_seed(spec.seed)
    sizes = {"n_embd": text.d_model, "n_layer": text.num_layers, "n_head": text.num_heads}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(
        vocab_size=reader.info.vocab_size,
        n_positions=text.max_tokens,
        tie_word_embeddings=False,
        **sizes,
        **dropout,
    )
    model = GPT2LMHeadModel(config)

    def nll(tokens: Tensor) -> Tensor:
        """Sum over the tokens (B, T) but the first of each row, nats."""
        logits = model(tokens[:, :-1]).logits
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum", ignore_index=PAD
        )

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        tokens, length = batch["tokens"], text.max_tokens
        segments = [tokens[:, i : i + length + 1] for i in range(0, tokens.shape[1] - 1, length)]
        return torch.stack([nll(segment) for segment in segments]).sum() / batch["token_mask"][:, 1:].sum()

    train(model, spec, corpus, loss_of)
    bits, sizes_bytes = [], []
    model.eval()
    for row in range(len(reader)):
        found = reader.table(np.array([row]), ["text", "text_tokens"]).to_pylist()[0]
        tokens = torch.tensor([found["text_tokens"]])
        with torch.inference_mode():
            total = sum(
                float(nll(tokens[:, i : i + text.max_tokens + 1]))
                for i in range(0, tokens.shape[1] - 1, text.max_tokens)
            )
        bits.append(total / log(2))
        sizes_bytes.append(float(len(found["text"].encode())))
    row = report("bits per byte", bits, range(len(bits)), 8.0, HOW, weights=sizes_bytes, unit="bits")
    print(f"a plain Transformer, {sum(p.numel() for p in model.parameters()):,} parameters: {shown(row)}")


def main() -> None:
    """Train the peer of a spec."""
    name, home = sys.argv[1], Path(sys.argv[2])
    stage, run = {"cifar10": ("plain", swin), "text": ("memory-0", plain_transformer)}[name]
    session = Session(home)
    workflow = session.load(ROOT / "examples" / "results" / f"{name}.yaml", [])
    planned = session.plan(workflow)["corpus"]
    if planned.decision is not Decision.HIT or planned.record is None:
        sys.exit(f"{home} has no corpus of it yet: eagleray run examples/results/{name}.yaml --home {home}")
    run(workflow.stages[stage], session.store.open(planned.record).path)


if __name__ == "__main__":
    main()

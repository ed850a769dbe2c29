"""Steps a second of Hugging Face Accelerate's loop in one process."""

from accelerate import Accelerator
from training import DEVICE, SPEC, build, join_alone, measure

join_alone()
model, optimizer, loss_of = build()
accelerator = Accelerator(cpu=DEVICE == "cpu")
model, optimizer = accelerator.prepare(model, optimizer)


def step(batch):
    loss = loss_of(model, batch)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), SPEC.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


measure(step)

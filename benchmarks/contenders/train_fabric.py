"""Steps a second of Lightning Fabric's loop in one process."""

from lightning.fabric import Fabric
from training import DEVICE, SPEC, build, join_alone, measure

join_alone()
model, optimizer, loss_of = build()
fabric = Fabric(accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1)
model, optimizer = fabric.setup(model, optimizer)


def step(batch):
    loss = loss_of(model, batch)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=SPEC.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


measure(step)

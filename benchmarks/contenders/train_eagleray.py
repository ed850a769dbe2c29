"""Steps a second of our learner in one process."""

from training import CLASSES, MODEL, SPEC, VOCABULARY, join_alone, measure

from eagleray.actors.training.learner import Learner

join_alone()
learner = Learner(SPEC, MODEL, VOCABULARY, CLASSES)


def step(batch):
    learner.backward([[batch]])
    learner.update()


measure(step)

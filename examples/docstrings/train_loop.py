"""The recipe in a plain PyTorch loop."""

from rich.progress import track
from task import Outcome, Task, run_alone

from optimplug import Horizon, Recipe
from optimplug.callbacks.trace import LearningRateTrace


def train(task: Task) -> Outcome:
    """Train with a loop of one's own."""
    model = task.model().train()
    batches = task.train_batches()
    horizon = Horizon(total_steps=len(batches) * task.epochs, steps_per_epoch=len(batches))
    optimizer, scheduler = Recipe.load(task.recipe).build(model, horizon)
    trace = LearningRateTrace()
    trace.attach(optimizer)
    for epoch in range(task.epochs):
        for batch in track(batches, f"loop, epoch {epoch + 1}"):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return Outcome(model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)

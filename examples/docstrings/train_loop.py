"""The recipe in a plain PyTorch loop."""

from rich.progress import track
from task import Outcome, Task, run_alone

from optimplug import Horizon, Recipe
from optimplug.callbacks.trace import LearningRateTrace


def train(task: Task) -> Outcome:
    """Train with a loop of one's own."""
    model = task.model().train()
    batches = task.train_batches()
    horizon = Horizon(task.steps_per_epoch * task.epochs, task.steps_per_epoch)
    run = Recipe.load(task.recipe).start(model, horizon)
    trace = LearningRateTrace()
    trace.attach(run.optimizer)
    update = 0
    for epoch in range(task.epochs):
        for i, batch in enumerate(track(batches, f"loop, epoch {epoch + 1}"), start=1):
            loss = model(**batch).loss
            (loss / task.accumulate).backward()
            if i % task.accumulate:
                continue
            run.step()
            update += 1
            if task.evaluate_every and update % task.evaluate_every == 0:
                run.eval()
                run.validated({"eval_loss": task.judge(model)[1]})
                run.train()
                model.train()
    run.eval()  # of a schedule-free optimizer, the weights to judge by
    return Outcome(model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)

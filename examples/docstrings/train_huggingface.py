"""The same recipe in the Hugging Face Trainer."""

import tempfile

from task import SEED, Outcome, Task, run_alone
from transformers import TrainingArguments

from optimplug.callbacks.huggingface import LearningRateTrace
from optimplug.huggingface import RecipeTrainer


def train(task: Task) -> Outcome:
    """Train with a RecipeTrainer."""
    trace = LearningRateTrace()
    model = task.model()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=task.batch_size,
            num_train_epochs=task.epochs,
            train_sampling_strategy="sequential",  # the texts are shuffled already
            seed=SEED,
            use_cpu=True,
            disable_tqdm=False,
            save_strategy="no",
            report_to="none",
        )
        RecipeTrainer(
            model=model,
            args=args,
            train_dataset=task.train_set,
            data_collator=task.collate,
            callbacks=[trace],
            recipe=task.recipe,
        ).train()
    return Outcome(model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)

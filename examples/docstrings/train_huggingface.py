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
    # BERT's classifier takes the Trainer's count of labels and makes nothing of it, so that
    # accumulated gradients would not be divided; so the Trainer leaves it out, and divides.
    model.accepts_loss_kwargs = False
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=task.batch_size,
            num_train_epochs=task.epochs,
            gradient_accumulation_steps=task.accumulate,
            eval_strategy="steps" if task.evaluate_every else "no",
            eval_steps=task.evaluate_every,
            per_device_eval_batch_size=64,
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
            eval_dataset=task.held_out_set,
            data_collator=task.collate,
            callbacks=[trace],
            recipe=task.recipe,
        ).train()
    return Outcome(model, trace.rates)


if __name__ == "__main__":
    run_alone(train, __doc__)

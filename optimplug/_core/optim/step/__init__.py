"""What a step works on, found once and checked at each: who steps, their counts, their batches."""

"""What models are fine-tuned on: rows with labels, answers, conversations or preferences."""

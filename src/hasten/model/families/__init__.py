"""What Hugging Face calls the fields and tensors of the architectures that hasten can hold."""

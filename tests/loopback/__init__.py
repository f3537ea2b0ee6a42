"""A stand-in for the Hugging Face Hub: see README.md."""

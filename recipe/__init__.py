"""A training recipe for crowd detection: a frozen DINOv3 under DETR, trained with the Hugging Face Trainer."""

"""From a YOLO folder to a Hugging Face dataset: `python -m data_prep sample | inspect | pack`."""

__version__ = "0.1.0"  # raise it when the shards of the same input change: finished shards are then written anew

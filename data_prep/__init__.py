"""From a folder of labelled photographs to a Hugging Face dataset: `python -m data_prep sample | inspect | pack`."""

__version__ = "0.2.0"

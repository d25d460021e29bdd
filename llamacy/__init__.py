"""llamacy: fine-tune a quantised language model on a laptop's CPU, talk to the result, serve it."""

__version__ = "0.1.0"

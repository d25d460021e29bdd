"""A model in memory: configuration, packed weights, tokenizer, and sessions that run them."""

from llamacy.model.config import ModelConfig
from llamacy.model.model import Model, load_model

__all__ = ["Model", "ModelConfig", "load_model"]

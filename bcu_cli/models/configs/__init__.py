"""Configurations that come with a model: those of timm, of transformers, and of bcu itself."""

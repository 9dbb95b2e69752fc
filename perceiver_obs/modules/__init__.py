"""Layers of tokenizer and Perceiver. They import torch, einops and vector_quantize_pytorch, and one another."""

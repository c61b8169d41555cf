"""Samples, activation ranges and recipes: what quantization is decided from."""

"""Accuracy, parity, statistics and latency."""

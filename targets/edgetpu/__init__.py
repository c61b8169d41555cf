"""The Coral Edge TPU: placement, memory and latency predicted, programs normalised, the compiler driven."""

"""LiteRT (TensorFlow Lite): quantize, inspect and run flatbuffers."""

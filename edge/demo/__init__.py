"""The demo: two small networks trained on real data."""

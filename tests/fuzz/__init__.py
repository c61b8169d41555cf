"""Hostile and broken input for every reader: mutators, a table of readers, and a harness with seeds."""

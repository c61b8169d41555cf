"""JSON Schemas of what commands print and of the manifest."""

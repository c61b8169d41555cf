"""Sources: what yields a float model, its signature and reference outputs."""

"""Sources: one module per kind, each yields a float model with its signature."""

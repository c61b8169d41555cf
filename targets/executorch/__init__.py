"""ExecuTorch: `.pte` programs for phones and boards, from exported PyTorch graphs."""

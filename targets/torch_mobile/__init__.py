"""PyTorch Mobile (legacy): `.ptl` programs for the lite interpreter."""

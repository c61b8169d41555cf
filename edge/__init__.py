"""Take a trained model to an edge device and prove that it works there."""

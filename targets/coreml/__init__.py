"""Core ML: `.mlpackage` programs by coremltools."""

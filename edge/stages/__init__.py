"""The stages of a build as they run in child processes: JSON in, JSON out, files in the work folder."""

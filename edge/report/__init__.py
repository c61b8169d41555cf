"""Reports: console, Markdown and JSON from one manifest."""

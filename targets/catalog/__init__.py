"""The targets that edgekit knows, one TOML file each."""

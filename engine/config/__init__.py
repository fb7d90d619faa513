"""Settings: typed fields, the sections that all families share, recipes in YAML."""

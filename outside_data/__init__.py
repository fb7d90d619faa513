"""What comes from others: how it is read (files, JSON, YAML, pictures) and how it is shown."""

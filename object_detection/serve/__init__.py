"""Detection on files, and the exported model."""

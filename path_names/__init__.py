"""Names of files and folders: what patterns mean, and what TensorFlow can take."""

"""What evaluation runs ask for: scores, tokens, files and batches."""

"""Networks: loading them, running them over ragged batches, and their key/value cache. The only folder that knows transformers."""

"""Strings to token ids and back. Nothing here knows torch or transformers; tokenizers are used through `Tokenizer`."""

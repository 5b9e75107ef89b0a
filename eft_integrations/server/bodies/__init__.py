"""What a call holds: reading, counting and bounding a body, and the fate of every field."""

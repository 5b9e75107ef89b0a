"""What the engine is compared with: the same work as people write it by hand over other libraries."""

"""State and time: requests become sequences, sequences share steps, steps become answers."""

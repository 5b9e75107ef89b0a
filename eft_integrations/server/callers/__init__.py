"""Who asks: keys, their limits and policies, whose turn it is, and reading all of that anew."""

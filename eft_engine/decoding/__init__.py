"""The mathematics: pure functions of tensors. No models, no state."""

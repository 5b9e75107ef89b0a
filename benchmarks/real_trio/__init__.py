"""A trio of public models of two sizes (Qwen2.5-Coder-Instruct 1.5B and 0.5B): what up-scaling gives and costs."""

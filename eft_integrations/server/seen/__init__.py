"""What operators see: logs, request ids, metrics, traces and health."""

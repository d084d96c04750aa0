"""Watch the service: metrics, logs, traces, health and free disk space."""

"""HTTP plumbing: limits on bodies and connections, file responses, server-sent events."""

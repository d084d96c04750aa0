"""Who may do what: API keys, roles, limits."""

"""Who may use the service: callers, tokens, hosts."""

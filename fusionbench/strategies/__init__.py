"""One file per fusion strategy; a file put here is registered by existing."""

"""Model versions, the active model, promotion and rollback."""

"""What a person or systemd runs on the head host. Never imports ray at module level."""

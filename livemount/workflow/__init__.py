"""The durable workflow of a mount: up, lease, destroy."""

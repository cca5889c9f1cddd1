"""What a user asks for: copies, mounts, their records; the service that runs the workflows."""

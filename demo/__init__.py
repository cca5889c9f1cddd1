"""What the demonstration and the end-to-end tests need beside the product: a real guest's disk."""

"""What the service stores, and how it is kept, listed, and deleted."""

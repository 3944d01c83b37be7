"""What is learned on top of slots: recognition."""

"""What will happen, and questions about it: dynamics over slots, and reasoning over slots and words."""

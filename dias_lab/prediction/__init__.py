"""What happens next: SlotFormer predicts the slots of clips, and questions are answered about what it predicts."""

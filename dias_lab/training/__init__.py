"""Training: the loop, a step, devices, the cost of a step. It trains a Task, and names no method."""

"""What maps are worth: scores, baselines, interventions, causes of failure, intervals and tables, methods side by side."""

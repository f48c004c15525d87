"""Classification and regression by a prompt's mask, and continued pre-training on filled prompts (PCP)."""

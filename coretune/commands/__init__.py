"""What a user of a fine-tuning command expects around a run: preview, init, launch, merge, chat, env."""

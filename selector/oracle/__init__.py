"""The measured loss change of removing channels."""

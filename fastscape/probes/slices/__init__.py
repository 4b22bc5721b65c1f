"""The loss along lines and planes."""

"""Figures of training samples and of how masks are made."""
